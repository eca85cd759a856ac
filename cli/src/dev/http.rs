//! Events by HTTP: `POST /streams/NAME`, one event or NDJSON; answered when they are durable.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use leat_compile::program::{Encoding, Program};
use leat_runtime::codecs::framing::Framing;
use leat_runtime::connectors::local::shard::Record;
use leat_runtime::connectors::local::streams::LocalStream;
use leat_runtime::engine::ports::PortError;

use crate::feed::{self, now};
use crate::sample::Keys;

/// Largest request, in bytes.
const LARGEST: usize = 32 << 20;

type Streams = (Arc<Program>, BTreeMap<String, Arc<LocalStream>>);

/// Serves in the background; answers the address.
pub(super) async fn serve(address: &str, program: Arc<Program>, streams: BTreeMap<String, Arc<LocalStream>>) -> Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let at = listener.local_addr()?;
    let app =
        Router::new().route("/streams/{name}", post(append)).layer(DefaultBodyLimit::max(LARGEST)).with_state(Arc::new((program, streams)));
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(at)
}

async fn append(State(world): State<Arc<Streams>>, Path(name): Path<String>, body: Bytes) -> (StatusCode, String) {
    let Some(stream) = world.1.get(&name).cloned() else {
        let hint = leat_crds::problem::suggest(&name, world.1.keys().map(String::as_str));
        return (StatusCode::NOT_FOUND, format!("there is no stream `{name}`; {hint}\n"));
    };
    let wrote = tokio::task::spawn_blocking(move || {
        let (data, ends) = records(&body, feed::encoding(&world.0, &name));
        let data = bytes::Bytes::from(data);
        let keys = Keys::new(&world.0, &name).of(&data, &ends);
        let mut start = 0;
        let records: Vec<(u64, Record)> = keys
            .into_iter()
            .zip(&ends)
            .map(|(key, end)| (0, Record { arrival: now(), key, data: data[std::mem::replace(&mut start, *end)..*end].to_vec() }))
            .collect();
        let count = records.len();
        stream.append(records, None).map(|()| count)
    });
    match wrote.await {
        Ok(Ok(count)) => (StatusCode::OK, format!("{{\"accepted\":{count}}}\n")),
        // There may be room later; what went to some of the shards stays there.
        Ok(Err(error @ PortError::Unclear(_))) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{error}; some of the events may have been taken: posted again they come twice\n"))
        }
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// The records of a body, without what divides them, and where each ends.
fn records(body: &[u8], encoding: Option<&Encoding>) -> (Vec<u8>, Vec<usize>) {
    // A body that is one JSON value is one event, however many lines it has.
    if matches!(encoding, Some(Encoding::Json)) && serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok() {
        return (body.to_vec(), vec![body.len()]);
    }
    let framing = match encoding {
        Some(Encoding::Csv(csv)) => Framing::Csv { header: false, delimiter: csv.delimiter },
        _ => Framing::Lines,
    };
    let (mut rest, mut data, mut ends) = (body, Vec::with_capacity(body.len()), Vec::new());
    // Reading from memory does not fail.
    while framing.next(&mut rest, &mut data).unwrap_or_default() {
        if ends.last().copied().unwrap_or_default() < data.len() {
            ends.push(data.len());
        }
    }
    (data, ends)
}
