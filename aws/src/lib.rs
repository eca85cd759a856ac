//! How Leat talks to AWS: credentials, endpoints, time-outs, and what an error means. Used by the operator, which
//! provisions, and by the workers, which read and write.
//!
//! Endpoints come from the SDK's own environment variables (`AWS_ENDPOINT_URL`, `AWS_ENDPOINT_URL_KINESIS` …): they are
//! configuration of the installation, never of a manifest.

mod failure;
mod msk;

pub use aws_config::SdkConfig;
pub use failure::{Call, Failure};
pub use msk::{MskError, MskSigner};

use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use leat_crds::spec::Aws;

/// Longest that one call may take, its retries included.
const CALL: Duration = Duration::from_secs(30);
/// Longest that one try may take.
const TRY: Duration = Duration::from_secs(10);
/// Least speed at which the body of a request goes out, bytes a second: many share a line.
const BODY_SPEED: u64 = 128 << 10;
/// Longest that a connection may take.
const CONNECT: Duration = Duration::from_secs(3);

/// Time-outs of a call whose request has a body of `bytes`: as long as it may take to send, and then as long as any
/// other. A connection that died unnoticed while the answer was awaited would hold the caller up for all of it.
pub fn for_body(bytes: usize) -> TimeoutConfig {
    let body = Duration::from_secs(bytes as u64 / BODY_SPEED);
    TimeoutConfig::builder().operation_timeout(CALL + body).operation_attempt_timeout(TRY + body).connect_timeout(CONNECT).build()
}

/// Prefix of the environment variables that name endpoints.
pub const ENDPOINT_VARIABLES: &str = "AWS_ENDPOINT_URL";

/// Buckets of an endpoint that is not AWS's are part of the path: its host name has no names below it.
pub fn path_style() -> bool {
    ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"].iter().any(|name| std::env::var_os(name).is_some())
}

/// Where and as whom calls are made.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Region; `None`: that of the environment.
    pub region: Option<String>,
    /// Role to assume; `None`: the process's own credentials.
    pub role: Option<String>,
    /// External id handed over with the role.
    pub external_id: Option<String>,
}

impl Target {
    /// Where calls for a resource go: what it says itself, else what its pipeline says.
    pub fn of(pipeline: Option<&Aws>, own: Option<&Aws>) -> Self {
        let first = |field: fn(&Aws) -> Option<&String>| own.and_then(field).or_else(|| pipeline.and_then(field)).cloned();
        Self {
            region: first(|a| a.region.as_ref()),
            role: first(|a| a.assume_role_arn.as_ref()),
            external_id: first(|a| a.external_id.as_ref()),
        }
    }
}

/// Who retries calls that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retries {
    /// The SDK, three tries each.
    Sdk,
    /// The caller: each call is tried once. For conditional writes, whose second try would not know the first one's
    /// outcome.
    Caller,
}

fn http() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https()
}

/// The same, over connections that are shared with nobody: an HTTP/2 connection takes so many calls at once and no more, so calls
/// that last for minutes would hold up all others.
pub fn apart(config: &SdkConfig) -> SdkConfig {
    config.to_builder().http_client(http()).build()
}

/// Loads credentials and makes the configuration that clients are built from. Makes no call before the first request.
pub async fn connect(target: &Target, retries: Retries) -> SdkConfig {
    let http = http();
    let timeouts = TimeoutConfig::builder().operation_timeout(CALL).operation_attempt_timeout(TRY).connect_timeout(CONNECT).build();
    let retry = match retries {
        Retries::Sdk => RetryConfig::standard(),
        Retries::Caller => RetryConfig::disabled(),
    };
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http).timeout_config(timeouts).retry_config(retry);
    if let Some(region) = &target.region {
        loader = loader.region(Region::new(region.clone()));
    }
    let config = loader.load().await;
    let Some(role) = &target.role else { return config };
    let mut assume = AssumeRoleProvider::builder(role).session_name("leat").configure(&config);
    if let Some(id) = &target.external_id {
        assume = assume.external_id(id);
    }
    let credentials = SharedCredentialsProvider::new(assume.build().await);
    config.into_builder().credentials_provider(credentials).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_may_take_as_long_as_its_body_and_no_longer() {
        let of = |bytes: usize| {
            let timeouts = for_body(bytes);
            (timeouts.operation_timeout(), timeouts.operation_attempt_timeout(), timeouts.connect_timeout())
        };
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(of(0), (seconds(30), seconds(10), seconds(3)));
        assert_eq!(of(8 << 20), (seconds(94), seconds(74), seconds(3)), "8 MiB at 128 KiB a second");
    }
}
