//! Emulators of AWS that answer the real SDKs: ferrokinesis or kinesis-local, DynamoDB Local, moto for S3 and
//! Glue.
//!
//! A proxy of ours stands in front of the first two. It answers what they lack (ferrokinesis: tags with the creation of a
//! stream; DynamoDB Local: tags and continuous backups), and can hold back or refuse calls, so that a fault comes at a
//! known moment. The emulators are on loopback; what clients reach are gates, which can be closed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use leat_aws::{Retries, SdkConfig, Target};
use serde_json::{Value, json};

use crate::gate::Gate;
use crate::process::{Program, free_port, tool, until};
use crate::pushes::Pushes;

/// What the proxy in front of DynamoDB Local does and knows.
#[derive(Default)]
pub struct Proxy {
    tags: Mutex<BTreeMap<String, BTreeMap<String, String>>>,
    recovery: Mutex<BTreeMap<String, bool>>,
    held: Mutex<Option<String>>,
    refused: Mutex<Option<(String, String)>>,
    refusals: Mutex<u64>,
    stopped: Mutex<Option<String>>,
    waiting: Mutex<BTreeMap<String, u64>>,
    /// Subscriptions to shards.
    pub pushes: Pushes,
}

impl Proxy {
    /// Holds back writes of items to a table until this is called with `None`.
    pub fn hold(&self, table: Option<&str>) {
        *self.held.lock().expect("a lock") = table.map(str::to_owned);
    }

    /// Holds back calls of an operation until this is called with `None`; then they go on.
    pub fn stop(&self, operation: Option<&str>) {
        *self.stopped.lock().expect("a lock") = operation.map(str::to_owned);
    }

    /// Calls of an operation that have been held back so far.
    pub fn stopped(&self, operation: &str) -> u64 {
        self.waiting.lock().expect("a lock").get(operation).copied().unwrap_or_default()
    }

    /// Answers calls of an operation with this error code until this is called with `None`.
    pub fn refuse(&self, operation_and_code: Option<(&str, &str)>) {
        *self.refused.lock().expect("a lock") = operation_and_code.map(|(o, c)| (o.to_owned(), c.to_owned()));
    }

    /// Calls that were answered so.
    pub fn refusals(&self) -> u64 {
        *self.refusals.lock().expect("a lock")
    }
}

struct Front {
    proxy: Arc<Proxy>,
    client: Client<HttpConnector, Full<Bytes>>,
    behind: u16,
}

/// Who plays Kinesis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kinesis {
    /// Fast; splits and merges; no capacity on demand at creation.
    Ferrokinesis,
    /// Slow beyond some ten thousand records; knows child shards and capacity on demand.
    KinesisLocal,
}

/// The emulators.
pub struct Clouds {
    /// Endpoint of each service, as the SDKs' environment variables name them.
    pub endpoints: BTreeMap<&'static str, String>,
    /// Port on loopback where kinesis-local speaks TLS, as the Kinesis Producer Library wants it.
    pub kinesis_tls: u16,
    /// The proxy in front of DynamoDB Local.
    pub proxy: Arc<Proxy>,
    gates: Vec<(&'static [&'static str], Gate)>,
    _programs: Vec<Program>,
}

impl Clouds {
    /// Starts all emulators, with logs in `folder`; clients reach them at `address`.
    pub async fn start(folder: &Path, kinesis_by: Kinesis, address: &str) -> Self {
        let (kinesis, tls, dynamodb, moto) = (free_port(), free_port(), free_port(), free_port());
        let mut programs = Vec::new();
        let mut command = match kinesis_by {
            Kinesis::Ferrokinesis => {
                let mut command = Command::new(tool("LEAT_TEST_FERROKINESIS"));
                command.args(["--port", &kinesis.to_string(), "--log-level", "warn"]);
                command.args(["--create-stream-ms", "200", "--delete-stream-ms", "200", "--update-stream-ms", "200"]);
                command
            }
            Kinesis::KinesisLocal => {
                let mut command = Command::new("node");
                command.arg("main.js").current_dir(tool("LEAT_TEST_KINESIS"));
                command.env("KINESIS_MOCK_PLAIN_PORT", kinesis.to_string()).env("KINESIS_MOCK_TLS_PORT", tls.to_string());
                for call in ["CREATE_STREAM", "DELETE_STREAM", "SPLIT_SHARD", "START_STREAM_ENCRYPTION", "UPDATE_STREAM_MODE"] {
                    command.env(format!("{call}_DURATION"), "200ms");
                }
                command.env("SHARD_LIMIT", "1000").env("LOG_LEVEL", "ERROR");
                command
            }
        };
        programs.push(Program::start("kinesis", folder, &mut command));
        let library = tool("LEAT_TEST_DYNAMODB");
        let mut command = Command::new("java");
        command.arg(format!("-Djava.library.path={}", library.display())).arg("-Xmx512m").arg("-cp").arg(library.join("*"));
        command.args(["software.amazon.dynamodb.services.local.main.ServerRunner", "-inMemory", "-sharedDb", "-disableTelemetry"]);
        programs.push(Program::start("dynamodb-local", folder, command.args(["-port", &dynamodb.to_string()])));
        let mut command = Command::new(tool("LEAT_TEST_MOTO"));
        programs.push(Program::start("moto", folder, command.args(["-H", "127.0.0.1", "-p", &moto.to_string()])));
        let proxy = Arc::new(Proxy::default());
        let front = serve(Arc::clone(&proxy), dynamodb).await;
        let kinesis_front = serve(Arc::clone(&proxy), kinesis).await;
        for port in [kinesis, dynamodb, moto] {
            until("an emulator", Duration::from_secs(60), async || {
                tokio::net::TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| e.to_string())
            })
            .await;
        }
        let (mut endpoints, mut gates) = (BTreeMap::new(), Vec::new());
        for (behind, services) in [
            (kinesis_front, &["AWS_ENDPOINT_URL_KINESIS"][..]),
            (front, &["AWS_ENDPOINT_URL_DYNAMODB"]),
            (moto, &["AWS_ENDPOINT_URL_GLUE", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_STS"]),
        ] {
            let gate = Gate::open(address, behind).await;
            endpoints.extend(services.iter().map(|service| (*service, format!("http://{}", gate.address))));
            gates.push((services, gate));
        }
        Self { endpoints, kinesis_tls: tls, proxy, gates, _programs: programs }
    }

    /// All of AWS is there, or gone: connections end and are refused.
    pub fn reachable(&self, there: bool) {
        self.gates.iter().for_each(|(_, gate)| gate.set(there));
    }

    /// The emulator behind an endpoint is there, or gone.
    pub fn service_reachable(&self, endpoint: &str, there: bool) {
        self.gates.iter().filter(|(services, _)| services.contains(&endpoint)).for_each(|(_, gate)| gate.set(there));
    }

    /// Gives a program the endpoints and credentials that no cloud knows.
    pub fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.envs(&self.endpoints);
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").env("AWS_REGION", "us-east-1");
        command.env("AWS_EC2_METADATA_DISABLED", "true").env_remove("AWS_PROFILE")
    }

    async fn config(&self, service: &str) -> SdkConfig {
        let target = Target { region: Some("us-east-1".to_owned()), ..Target::default() };
        let config = leat_aws::connect(&target, Retries::Sdk).await;
        let credentials = SharedCredentialsProvider::new(Credentials::new("test", "test", None, None, "test"));
        // A busy machine is slow, and a call that is made twice would send records twice.
        let patient = config.into_builder().timeout_config(leat_aws::for_body(64 << 20));
        patient.credentials_provider(credentials).endpoint_url(self.endpoints[service].clone()).build()
    }

    /// A client of Kinesis.
    pub async fn kinesis(&self) -> aws_sdk_kinesis::Client {
        aws_sdk_kinesis::Client::new(&self.config("AWS_ENDPOINT_URL_KINESIS").await)
    }

    /// A client of DynamoDB.
    pub async fn dynamodb(&self) -> aws_sdk_dynamodb::Client {
        aws_sdk_dynamodb::Client::new(&self.config("AWS_ENDPOINT_URL_DYNAMODB").await)
    }

    /// A client of Glue.
    pub async fn glue(&self) -> aws_sdk_glue::Client {
        aws_sdk_glue::Client::new(&self.config("AWS_ENDPOINT_URL_GLUE").await)
    }

    /// A client of S3.
    pub async fn s3(&self) -> aws_sdk_s3::Client {
        let config = self.config("AWS_ENDPOINT_URL_S3").await;
        aws_sdk_s3::Client::from_conf(aws_sdk_s3::config::Builder::from(&config).force_path_style(true).build())
    }
}

async fn serve(proxy: Arc<Proxy>, behind: u16) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let client = Client::builder(TokioExecutor::new()).build_http();
    let front = Arc::new(Front { proxy, client, behind });
    let app = axum::Router::new().fallback(answer).layer(axum::extract::DefaultBodyLimit::max(64 << 20)).with_state(front);
    tokio::spawn(async move { axum::serve(listener, app).await });
    port
}

/// An answer of JSON.
pub fn json_answer(status: u16, body: &Value) -> Response<Body> {
    let answer = Response::builder().status(status).header("content-type", "application/x-amz-json-1.0");
    answer.body(Body::from(body.to_string())).expect("an answer")
}

async fn answer(State(front): State<Arc<Front>>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let target = headers.get("x-amz-target").and_then(|t| t.to_str().ok()).unwrap_or_default();
    let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
    let mut request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let proxy = &front.proxy;
    if let Some((refused, code)) = proxy.refused.lock().expect("a lock").clone()
        && refused == operation
    {
        *proxy.refusals.lock().expect("a lock") += 1;
        let status = if code == "InternalServerError" { 500 } else { 400 };
        let name = format!("com.amazonaws.dynamodb.v20120810#{code}");
        return json_answer(status, &json!({"__type": name, "message": "answered by the test"}));
    }
    if proxy.stopped.lock().expect("a lock").as_ref() == Some(&operation) {
        *proxy.waiting.lock().expect("a lock").entry(operation.clone()).or_default() += 1;
        while proxy.stopped.lock().expect("a lock").as_ref() == Some(&operation) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    if target.starts_with("Kinesis") {
        let tags = if operation == "CreateStream" { request["Tags"].take() } else { Value::Null };
        let stream = request["StreamName"].clone();
        if operation == "SubscribeToShard" {
            let (front, headers) = (Arc::clone(&front), headers.clone());
            let call = move |operation: &'static str, request: Value| {
                let (front, mut headers) = (Arc::clone(&front), headers.clone());
                headers.insert("x-amz-target", format!("Kinesis_20131202.{operation}").parse().expect("a header"));
                async move {
                    let answer = forward(&front, &headers, Bytes::from(request.to_string())).await;
                    let (status, body) = (answer.status().as_u16(), answer.into_body().collect().await.map(|b| b.to_bytes()));
                    (status, body.map(|b| serde_json::from_slice(&b).unwrap_or_default()).unwrap_or_default())
                }
            };
            return proxy.pushes.begin(&request, call).await;
        }
        let answer = forward(&front, &headers, body).await;
        if let (true, Value::Object(tags)) = (answer.status().is_success(), tags) {
            let mut headers = headers;
            headers.insert("x-amz-target", "Kinesis_20131202.AddTagsToStream".parse().expect("a header"));
            forward(&front, &headers, Bytes::from(json!({"StreamName": stream, "Tags": tags}).to_string())).await;
        }
        return answer;
    }
    let table = request["TableName"].as_str().unwrap_or_default().to_owned();
    let arn = request["ResourceArn"].as_str().unwrap_or_default();
    let of_arn = arn.rsplit('/').next().unwrap_or_default().to_owned();
    match operation.as_str() {
        "TagResource" => {
            keep_tags(proxy, &of_arn, &request["Tags"]);
            return json_answer(200, &json!({}));
        }
        "ListTagsOfResource" => {
            let tags = proxy.tags.lock().expect("a lock").get(&of_arn).cloned().unwrap_or_default();
            let tags: Vec<Value> = tags.iter().map(|(key, value)| json!({"Key": key, "Value": value})).collect();
            return json_answer(200, &json!({"Tags": tags}));
        }
        "DescribeContinuousBackups" | "UpdateContinuousBackups" => {
            let mut recovery = proxy.recovery.lock().expect("a lock");
            if let Some(on) = request["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"].as_bool() {
                recovery.insert(table.clone(), on);
            }
            let status = if recovery.get(&table) == Some(&true) { "ENABLED" } else { "DISABLED" };
            let description = json!({"PointInTimeRecoveryStatus": status});
            let all = json!({"ContinuousBackupsStatus": "ENABLED", "PointInTimeRecoveryDescription": description});
            return json_answer(200, &json!({"ContinuousBackupsDescription": all}));
        }
        "CreateTable" => {
            keep_tags(proxy, &table, &request["Tags"].take());
            request.as_object_mut().map(|r| r.remove("Tags"));
        }
        "DeleteTable" => drop(proxy.tags.lock().expect("a lock").remove(&table)),
        "PutItem" => {
            while proxy.held.lock().expect("a lock").as_ref() == Some(&table) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        _ => {}
    }
    let body = if operation == "CreateTable" { Bytes::from(request.to_string()) } else { body };
    forward(&front, &headers, body).await
}

async fn forward(front: &Front, headers: &HeaderMap, body: Bytes) -> Response<Body> {
    let mut forward = hyper::Request::builder().method("POST").uri(format!("http://127.0.0.1:{}/", front.behind));
    for (name, value) in headers.iter().filter(|(name, _)| !["host", "content-length"].contains(&name.as_str())) {
        forward = forward.header(name, value);
    }
    let forward = forward.body(Full::new(body)).expect("a request");
    match front.client.request(forward).await {
        Err(_) => json_answer(StatusCode::BAD_GATEWAY.as_u16(), &json!({})),
        Ok(answer) => {
            let (parts, body) = answer.into_parts();
            let bytes = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let mut out = Response::builder().status(parts.status);
            for (name, value) in parts.headers.iter().filter(|(name, _)| !["content-length", "transfer-encoding"].contains(&name.as_str()))
            {
                out = out.header(name, value);
            }
            out.body(Body::from(bytes)).expect("an answer")
        }
    }
}

fn keep_tags(proxy: &Proxy, table: &str, tags: &Value) {
    let mut all = proxy.tags.lock().expect("a lock");
    let kept = all.entry(table.to_owned()).or_default();
    for tag in tags.as_array().into_iter().flatten() {
        let text = |field: &str| tag[field].as_str().unwrap_or_default().to_owned();
        kept.insert(text("Key"), text("Value"));
    }
}
