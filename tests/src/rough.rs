//! A rough road to a server of HTTP: requests that never arrive, arrive twice or late, answers that are cut off or get lost, and
//! servers that are overburdened. Which call meets what is decided by a seed and the order of calls.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{Method, Request, Response, StatusCode, response};
use futures::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It goes through.
    Fine,
    /// It arrives late.
    Late,
    /// It never arrives, and the connection ends.
    Lost,
    /// It arrives, and nobody hears of it.
    Unheard,
    /// It arrives, and its answer is cut off in the middle.
    Cut,
    /// It arrives twice; the answer is the second one's.
    Twice,
    /// The server says that it is overburdened.
    Refused,
    /// Every second record of a PutRecords is refused; other calls go through.
    Half,
}

/// A road.
pub struct Road {
    client: Client<HttpConnector, Full<Bytes>>,
    behind: String,
    random: Mutex<u64>,
    /// Of a thousand calls, those that something happens to.
    rough: Mutex<u64>,
    /// An object that is never read to its end.
    half: Mutex<Option<String>>,
    /// What happened so far.
    pub met: Mutex<BTreeMap<Fate, u64>>,
}

impl Road {
    /// A road to `behind` (`http://host:port`), and its own address.
    pub async fn to(behind: &str, seed: u64, rough: u64) -> (String, Arc<Self>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let client = Client::builder(TokioExecutor::new()).build_http();
        let (random, rough) = (Mutex::new(seed), Mutex::new(rough));
        let road = Arc::new(Self { client, behind: behind.to_owned(), random, rough, half: Mutex::default(), met: Mutex::default() });
        let app = axum::Router::new().fallback(pass).layer(axum::extract::DefaultBodyLimit::max(64 << 20)).with_state(Arc::clone(&road));
        tokio::spawn(async move { axum::serve(listener, app).await });
        (address, road)
    }

    /// From now on everything goes through.
    pub fn smooth(&self) {
        *self.rough.lock().expect("a number") = 0;
    }

    /// From now on nobody gets beyond the middle of this object: the first half of its bytes arrives, and what asks for later
    /// ones is lost.
    pub fn halve(&self, object: &str) {
        *self.half.lock().expect("a name") = Some(object.to_owned());
    }

    /// What happens to a read of the object that has only a first half.
    fn half(&self, parts: &Parts) -> Option<Fate> {
        let half = self.half.lock().expect("a name");
        let met = parts.method == Method::GET && half.as_ref().is_some_and(|object| parts.uri.path().ends_with(object));
        let begins = parts.headers.get("range").is_none_or(|range| range.as_bytes().starts_with(b"bytes=0-"));
        met.then_some(if begins { Fate::Cut } else { Fate::Lost })
    }

    /// What happens to the next call; `batch`: whether each of its records is answered.
    fn fate(&self, batch: bool) -> (Fate, u64) {
        let mut state = self.random.lock().expect("a number");
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let drawn = *state >> 33;
        let fates = [Fate::Late, Fate::Lost, Fate::Unheard, Fate::Cut, Fate::Twice, Fate::Refused];
        let (drawn_of, rough) = (drawn % 1000, *self.rough.lock().expect("a number"));
        let fate = match drawn_of {
            met if met < rough => fates[(drawn / 1000 % 6) as usize],
            // They are few.
            met if batch && met < 7 * rough => Fate::Half,
            _ => Fate::Fine,
        };
        *self.met.lock().expect("a map").entry(fate).or_default() += 1;
        (fate, drawn / 6000)
    }
}

/// A PutRecords with its first record, its third, and so on; and how many it had.
fn every_second(body: &Bytes) -> (Bytes, usize) {
    let mut request: Value = serde_json::from_slice(body).expect("a request");
    let records = request["Records"].as_array().expect("records").clone();
    request["Records"] = records.iter().step_by(2).cloned().collect();
    (request.to_string().into(), records.len())
}

/// Its answer, with those between them refused; `records`: of the whole request.
fn with_refused(bytes: &Bytes, records: usize) -> Bytes {
    let mut answer: Value = serde_json::from_slice(bytes).expect("an answer");
    let mut taken = answer["Records"].as_array().expect("records").clone().into_iter();
    let refused = json!({"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "the shard has enough"});
    let all: Vec<Value> = (0..records).map(|i| if i % 2 == 0 { taken.next().expect("an answer") } else { refused.clone() }).collect();
    answer["FailedRecordCount"] = json!(all.iter().filter(|r| r.get("ErrorCode").is_some_and(|c| !c.is_null())).count());
    answer["Records"] = json!(all);
    answer.to_string().into()
}

/// No answer: a body that is an error at once takes the head with it.
fn lost() -> Response<Body> {
    let parts = [Ok(Bytes::new()), Err(std::io::Error::other("the road ends here"))];
    Response::builder().header("content-length", "1").body(Body::from_stream(futures::stream::iter(parts))).expect("an answer")
}

/// An answer that breaks off: its head and the first half of these bytes are on their way when the connection ends.
fn broken_off(head: &response::Parts, bytes: &Bytes) -> Response<Body> {
    let end = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(std::io::Error::other("the road ends here"))
    };
    let half = Ok(bytes.slice(..bytes.len() / 2));
    answer(head, Body::from_stream(futures::stream::iter([half]).chain(futures::stream::once(end))))
}

/// An answer with the head of another one.
fn answer(head: &response::Parts, body: Body) -> Response<Body> {
    let mut out = Response::builder().status(head.status);
    for (name, value) in head.headers.iter().filter(|(name, _)| !["transfer-encoding"].contains(&name.as_str())) {
        out = out.header(name, value);
    }
    out.body(body).expect("an answer")
}

async fn pass(State(road): State<Arc<Road>>, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
        return lost();
    };
    let batch = parts.headers.get("x-amz-target").is_some_and(|t| t.as_bytes().ends_with(b".PutRecords"));
    let (fate, drawn) = road.fate(batch);
    let fate = road.half(&parts).unwrap_or(fate);
    let (body, records) = if fate == Fate::Half { every_second(&body) } else { (body, 0) };
    let target = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    let uri = format!("{}{target}", road.behind);
    let once = || {
        let mut forward = hyper::Request::builder().method(parts.method.clone()).uri(&uri);
        for (name, value) in parts.headers.iter().filter(|(name, _)| !["host", "content-length"].contains(&name.as_str())) {
            forward = forward.header(name, value);
        }
        road.client.request(forward.body(Full::new(body.clone())).expect("a request"))
    };
    match fate {
        Fate::Lost => return lost(),
        Fate::Refused => {
            let answer = Response::builder().status(StatusCode::SERVICE_UNAVAILABLE).header("content-type", "application/x-amz-json-1.0");
            return answer.body(Body::from(r#"{"__type":"ServiceUnavailable","message":"slow down"}"#)).expect("an answer");
        }
        Fate::Late => tokio::time::sleep(Duration::from_millis(drawn % 700)).await,
        Fate::Twice => drop(once().await),
        Fate::Fine | Fate::Unheard | Fate::Cut | Fate::Half => {}
    }
    let Ok(answered) = once().await else { return lost() };
    let (head, mut body) = answered.into_parts();
    // A stream of events goes on and on; one that is cut off has begun.
    if head.headers.get("content-type").is_some_and(|t| t == "application/vnd.amazon.eventstream") {
        return match fate {
            Fate::Unheard => lost(),
            Fate::Cut => {
                let begin = body.frame().await.and_then(|f| f.ok()?.into_data().ok()).unwrap_or_default();
                broken_off(&head, &begin)
            }
            _ => Response::from_parts(head, Body::new(body)),
        };
    }
    let Ok(bytes) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
        return lost();
    };
    match fate {
        Fate::Unheard => return lost(),
        Fate::Cut => return broken_off(&head, &bytes),
        _ => {}
    }
    let bytes = if fate == Fate::Half && head.status.is_success() { with_refused(&bytes, records) } else { bytes };
    answer(&head, Body::from(bytes))
}
