//! A connection to a broker: TLS, SASL, and one request after the other.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{
    ApiVersionsRequest, ApiVersionsResponse, RequestHeader, ResponseHeader, SaslAuthenticateRequest, SaslHandshakeRequest,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::scram::{self, Scram};
use crate::engine::ports::PortError;

/// Longest that a connection may take, its handshakes included.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest that an answer may take, beside what its request lets the broker wait.
const ANSWER: Duration = Duration::from_secs(30);
/// An answer is never longer than this, bytes.
const LARGEST_ANSWER: usize = 256 << 20;
/// What this program calls itself.
const CLIENT: &str = "leat";

/// How brokers are spoken to.
#[derive(Debug, Clone, Default)]
pub struct Security {
    /// Encrypted; with the folder of a secret that has `ca.crt`, or `tls.crt` and `tls.key`, or none of them.
    pub tls: Option<Credentials>,
    /// Who this is.
    pub sasl: Option<Sasl>,
}

/// How brokers know who connects.
#[derive(Debug, Clone)]
pub enum Sasl {
    /// By user name and password: the folder of a secret that has `username` and `password`.
    Scram(scram::Mechanism, Credentials),
    /// By a token (OAUTHBEARER, RFC 7628).
    Bearer(Arc<dyn Tokens>),
}

/// Makes tokens.
pub trait Tokens: std::fmt::Debug + Send + Sync {
    /// One that is good now, and for some minutes.
    fn token(&self) -> BoxFuture<'_, Result<String, PortError>>;
}

/// The folder of a secret. It is read anew for each connection, since secrets are exchanged while a worker runs.
#[derive(Debug, Clone, Default)]
pub struct Credentials(pub Option<PathBuf>);

impl Credentials {
    /// A file of the secret; `None`: it has no such file.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, PortError> {
        let Some(path) = self.0.as_ref().map(|folder| folder.join(name)) else { return Ok(None) };
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(&path, &error)),
        }
    }

    /// A text of the secret, without the line's end that editors put behind it.
    fn text(&self, name: &str) -> Result<String, PortError> {
        let missing = || PortError::Fatal(format!("the secret of the Kafka cluster has no `{name}`"));
        let text = String::from_utf8(self.read(name)?.ok_or_else(missing)?);
        Ok(text.map_err(|_| PortError::Fatal(format!("`{name}` is no text")))?.trim_end_matches(['\r', '\n']).to_owned())
    }
}

/// The authorities that this system knows; reading them takes a while.
fn known_publicly() -> &'static [CertificateDer<'static>] {
    static KNOWN: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    KNOWN.get_or_init(|| rustls_native_certs::load_native_certs().certs)
}

fn unreadable(path: &Path, why: &dyn std::fmt::Display) -> PortError {
    let name = path.file_name().unwrap_or_default().display();
    PortError::Unclear(format!("`{name}` of the secret of the Kafka cluster cannot be read: {why}"))
}

impl Security {
    fn tls(&self) -> Result<Option<TlsConnector>, PortError> {
        let Some(credentials) = &self.tls else { return Ok(None) };
        let broken = |name: &str, why: &dyn std::fmt::Display| {
            PortError::Fatal(format!("`{name}` of the secret of the Kafka cluster cannot be used: {why}"))
        };
        let certificates = |name: &str, pem: &[u8]| {
            let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            read.map_err(|why| broken(name, &why))
        };
        let mut roots = RootCertStore::empty();
        match credentials.read("ca.crt")? {
            Some(pem) => {
                for certificate in certificates("ca.crt", &pem)? {
                    roots.add(certificate).map_err(|why| broken("ca.crt", &why))?;
                }
                if roots.is_empty() {
                    return Err(broken("ca.crt", &"there is no certificate in it"));
                }
            }
            None => drop(roots.add_parsable_certificates(known_publicly().iter().cloned())),
        }
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|why| PortError::Fatal(format!("TLS: {why}")))?
            .with_root_certificates(roots);
        let config = match (credentials.read("tls.crt")?, credentials.read("tls.key")?) {
            (Some(chain), Some(key)) => {
                let key = PrivateKeyDer::from_pem_slice(&key).map_err(|why| broken("tls.key", &why))?;
                // A Secret that is exchanged just now may show one file of before and one of after.
                let config = config.with_client_auth_cert(certificates("tls.crt", &chain)?, key);
                config.map_err(|why| PortError::Unclear(format!("`tls.crt` and `tls.key` do not fit: {why}")))?
            }
            (None, None) => config.with_no_client_auth(),
            _ => return Err(broken("tls.crt", &"`tls.crt` and `tls.key` are used together")),
        };
        Ok(Some(TlsConnector::from(Arc::new(config))))
    }
}

/// What is said in turn until a broker knows who this is.
enum Exchange {
    Scram(scram::Mechanism, Scram),
    Bearer(String),
}

impl Exchange {
    fn name(&self) -> &'static str {
        match self {
            Self::Scram(mechanism, _) => mechanism.name(),
            Self::Bearer(_) => "OAUTHBEARER",
        }
    }

    fn first(&self) -> Vec<u8> {
        match self {
            Self::Scram(_, scram) => scram.first(),
            Self::Bearer(token) => format!("n,,\x01auth=Bearer {token}\x01\x01").into_bytes(),
        }
    }

    /// What follows an answer; `None`: this was the last one.
    fn next(&mut self, answer: &[u8]) -> Result<Option<Vec<u8>>, String> {
        match self {
            Self::Scram(_, scram) => scram.next(answer),
            Self::Bearer(_) if answer.is_empty() => Ok(None),
            Self::Bearer(_) => Err(format!("the token was refused: {}", String::from_utf8_lossy(answer))),
        }
    }
}

/// Bytes there and back.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection to a broker. After a call that failed it cannot be used any more.
pub struct Connection {
    io: Box<dyn Io>,
    address: String,
    versions: ApiVersionsResponse,
    sent: i32,
    /// Who this is, where the broker wants to hear it again by then.
    again: Option<(Sasl, Instant)>,
}

impl Connection {
    /// Connects to `host:port`.
    pub async fn open(address: &str, security: &Security) -> Result<Self, PortError> {
        let opened = tokio::time::timeout(CONNECT, Self::handshakes(address, security)).await;
        opened.unwrap_or_else(|_| Err(PortError::Unclear(format!("Kafka at {address}: no connection within {} s", CONNECT.as_secs()))))
    }

    async fn handshakes(address: &str, security: &Security) -> Result<Self, PortError> {
        let unclear = |what: &str, why: &std::io::Error| PortError::Unclear(format!("Kafka at {address}: {what}: {why}"));
        let plain = TcpStream::connect(address).await.map_err(|why| unclear("no connection", &why))?;
        plain.set_nodelay(true).map_err(|why| unclear("no connection", &why))?;
        let io: Box<dyn Io> = match security.tls()? {
            None => Box::new(plain),
            Some(connector) => {
                let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
                let name = ServerName::try_from(host.to_owned()).map_err(|why| PortError::Fatal(format!("Kafka at {address}: {why}")))?;
                Box::new(connector.connect(name, plain).await.map_err(|why| unclear("no TLS", &why))?)
            }
        };
        let mut connection = Self { io, address: address.to_owned(), versions: ApiVersionsResponse::default(), sent: 0, again: None };
        // Version 0 is what every broker answers in.
        connection.versions = connection.send(&ApiVersionsRequest::default(), 0, ANSWER).await?;
        if let Some(sasl) = &security.sasl {
            connection.authenticate(sasl.clone()).await?;
        }
        Ok(connection)
    }

    /// Says who this is: SCRAM (RFC 5802) or a token (RFC 7628), within Kafka's own messages (KIP-152). Where the broker lets
    /// nobody in for ever, it is said again in time, on the same connection (KIP-368).
    async fn authenticate(&mut self, sasl: Sasl) -> Result<(), PortError> {
        let mut exchange = match &sasl {
            Sasl::Scram(mechanism, credentials) => {
                let (user, password) = (credentials.text("username")?, credentials.text("password")?);
                Exchange::Scram(*mechanism, Scram::new(*mechanism, &user, &password).map_err(PortError::Unclear)?)
            }
            Sasl::Bearer(tokens) => Exchange::Bearer(tokens.token().await?),
        };
        let mechanism = exchange.name();
        let handshake = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(mechanism));
        let answer = self.ask(&handshake, 1, 1, Duration::ZERO).await?;
        if answer.error_code != 0 {
            let takes: Vec<&str> = answer.mechanisms.iter().map(|m| m.as_str()).collect();
            let why = format!("{mechanism} is not enabled there, but {}", takes.join(", "));
            return Err(PortError::Fatal(format!("Kafka at {}: {why}", self.address)));
        }
        let (mut next, mut lasts) = (Some(exchange.first()), 0);
        while let Some(bytes) = next {
            let step = SaslAuthenticateRequest::default().with_auth_bytes(bytes.into());
            let answer = self.ask(&step, 0, 2, Duration::ZERO).await?;
            if answer.error_code != 0 {
                let why = answer.error_message.as_ref().map_or("no reason", |m| m.as_str());
                // Brokers of Amazon MSK say so where connections come too fast.
                if why.contains("Too many connects") {
                    return Err(PortError::Unclear(format!("Kafka at {}: {why}", self.address)));
                }
                return Err(PortError::Fatal(format!("Kafka at {} does not let this worker in: {why}", self.address)));
            }
            lasts = answer.session_lifetime_ms;
            next = exchange.next(&answer.auth_bytes).map_err(|why| PortError::Fatal(format!("Kafka at {}: {why}", self.address)))?;
        }
        let lasts = u64::try_from(lasts).ok().filter(|lasts| *lasts > 0);
        self.again = lasts.map(|lasts| (sasl, Instant::now() + Duration::from_millis(lasts * 3 / 4)));
        Ok(())
    }

    /// Makes a call in the highest version that both sides know, of those between `least` and `most`. `waits`: so long it may
    /// let the broker wait.
    pub async fn call<R: Request>(&mut self, request: &R, least: i16, most: i16, waits: Duration) -> Result<R::Response, PortError> {
        if let Some((sasl, _)) = self.again.take_if(|(_, at)| *at <= Instant::now()) {
            // A role may have come back under another name, which brokers take on a connection of its own alone.
            self.authenticate(sasl).await.map_err(|why| match why {
                PortError::Fatal(why) | PortError::Unclear(why) => PortError::Unclear(format!("{why}; it is connected to anew")),
            })?;
        }
        self.ask(request, least, most, waits).await
    }

    async fn ask<R: Request>(&mut self, request: &R, least: i16, most: i16, waits: Duration) -> Result<R::Response, PortError> {
        let broker = self.versions.api_keys.iter().find(|k| k.api_key == R::KEY).map_or((0, 0), |k| (k.min_version, k.max_version));
        let version = most.min(R::VERSIONS.max).min(broker.1);
        if version < least || version < broker.0 {
            let key = kafka_protocol::messages::ApiKey::try_from(R::KEY).map(|key| format!("{key:?}")).unwrap_or_default();
            let why = format!("{key} in versions {} to {}, and {least} to {most} are needed: Kafka 3.1 or newer", broker.0, broker.1);
            return Err(PortError::Fatal(format!("Kafka at {} offers {why}", self.address)));
        }
        self.send(request, version, ANSWER + waits).await
    }

    async fn send<R: Request>(&mut self, request: &R, version: i16, within: Duration) -> Result<R::Response, PortError> {
        let wrong = |address: &str, why: &dyn std::fmt::Display| PortError::Unclear(format!("Kafka at {address}: {why}"));
        self.sent = self.sent.wrapping_add(1);
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.sent)
            .with_client_id(Some(StrBytes::from_static_str(CLIENT)));
        let mut out = BytesMut::new();
        out.put_i32(0);
        let encoded = header.encode(&mut out, R::header_version(version)).and_then(|()| request.encode(&mut out, version));
        encoded.map_err(|why| PortError::Fatal(format!("a request to Kafka cannot be written: {why}")))?;
        let length = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
        out[..4].copy_from_slice(&length.to_be_bytes());
        let exchange = async {
            self.io.write_all(&out).await?;
            self.io.flush().await?;
            let length = usize::try_from(self.io.read_i32().await?).unwrap_or(usize::MAX);
            if length > LARGEST_ANSWER {
                return Err(std::io::Error::other(format!("an answer of {length} bytes")));
            }
            let mut answer = vec![0; length];
            self.io.read_exact(&mut answer).await?;
            Ok(Bytes::from(answer))
        };
        let mut answer = match tokio::time::timeout(within, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => return Err(wrong(&self.address, &why)),
            Err(_) => return Err(wrong(&self.address, &format!("no answer within {} s", within.as_secs()))),
        };
        let header = ResponseHeader::decode(&mut answer, R::Response::header_version(version)).map_err(|why| wrong(&self.address, &why))?;
        if header.correlation_id != self.sent {
            return Err(wrong(&self.address, &"an answer to another request"));
        }
        let body = R::Response::decode(&mut answer, version).map_err(|why| wrong(&self.address, &why))?;
        if answer.has_remaining() {
            return Err(wrong(&self.address, &format!("an answer with {} bytes too many", answer.remaining())));
        }
        Ok(body)
    }
}

/// What a code in an answer means: `None`, no error; else whether it goes away by itself.
pub fn refused(what: &str, code: i16) -> Option<PortError> {
    if code == 0 {
        return None;
    }
    Some(match ResponseError::try_from_code(code) {
        // A broker that cannot read its own storage says that it does not know what is wrong.
        Some(error) if error.is_retriable() || error == ResponseError::UnknownServerError => {
            PortError::Unclear(format!("{what}: {error:?}"))
        }
        Some(error) => PortError::Fatal(format!("{what}: {error:?}")),
        None => PortError::Unclear(format!("{what}: error {code}")),
    })
}
