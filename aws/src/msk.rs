//! Tokens by which brokers of Amazon MSK know who calls: a request to connect that AWS would answer, signed and not sent. The
//! broker has it checked
//! (<https://docs.aws.amazon.com/msk/latest/developerguide/configure-clients-for-iam-access-control.html>, and
//! `aws/aws-msk-iam-sasl-signer-python`, whose tokens these are).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use thiserror::Error;

/// How long a token is good for.
const LIFE: Duration = Duration::from_secs(900);
/// Credentials that end sooner are asked for again.
const ENDING: Duration = Duration::from_secs(300);

/// Why there is no token.
#[derive(Debug, Error)]
pub enum MskError {
    /// Nobody said where.
    #[error("no region: set `aws.region`, or AWS_REGION")]
    Region,
    /// Nobody said who.
    #[error("no credentials: {0}")]
    Credentials(String),
    /// Signing.
    #[error("a token cannot be signed: {0}")]
    Signing(String),
}

/// Makes tokens.
#[derive(Debug, Clone)]
pub struct MskSigner {
    region: Option<String>,
    credentials: Option<SharedCredentialsProvider>,
    /// Those of the last token that end at some time: a worker opens a connection to each broker, and asking takes a call.
    known: Arc<Mutex<Option<Credentials>>>,
}

impl MskSigner {
    /// For brokers in the region of a configuration, as whom it says.
    pub fn of(config: &SdkConfig) -> Self {
        Self { region: config.region().map(ToString::to_string), credentials: config.credentials_provider(), known: Arc::default() }
    }

    /// A token that is good from `now` on, for fifteen minutes or as long as the credentials.
    pub async fn token(&self, now: SystemTime) -> Result<String, MskError> {
        let region = self.region.as_ref().ok_or(MskError::Region)?;
        let credentials = self.credentials(now).await?;
        let signing = |e: &dyn std::fmt::Display| MskError::Signing(e.to_string());
        let mut settings = SigningSettings::default();
        settings.signature_location = SignatureLocation::QueryParams;
        settings.expires_in = Some(LIFE);
        let identity = credentials.into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name("kafka-cluster")
            .time(now)
            .settings(settings)
            .build()
            .map_err(|e| signing(&e))?;
        let url = format!("https://kafka.{region}.amazonaws.com/?Action=kafka-cluster%3AConnect");
        let request = SignableRequest::new("GET", &url, std::iter::empty(), SignableBody::Bytes(&[])).map_err(|e| signing(&e))?;
        let (instructions, _) = sign(request, &parameters.into()).map_err(|e| signing(&e))?.into_parts();
        let mut request = http::Request::builder().uri(url).body(()).map_err(|e| signing(&e))?;
        instructions.apply_to_request_http1x(&mut request);
        // Who asks is no part of what is signed.
        Ok(URL_SAFE_NO_PAD.encode(format!("{}&User-Agent=leat%2F{}", request.uri(), env!("CARGO_PKG_VERSION"))))
    }

    async fn credentials(&self, now: SystemTime) -> Result<Credentials, MskError> {
        let lasts = |known: &Credentials| known.expiry().is_some_and(|end| end > now + ENDING);
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(lasts) {
            return Ok(known);
        }
        let provider = self.credentials.as_ref().ok_or_else(|| MskError::Credentials("none are configured".to_owned()))?;
        let credentials = provider.provide_credentials().await.map_err(|e| MskError::Credentials(e.to_string()))?;
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(credentials.clone());
        Ok(credentials)
    }
}
