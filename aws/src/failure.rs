//! What a failed call means, classified once: did it have its effect, may it be made again, and who can help.

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use thiserror::Error;

/// What was tried, for messages: `Kinesis CreateStream clickstream-events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Service and operation.
    pub operation: &'static str,
    /// The resource.
    pub resource: String,
}

impl Call {
    /// A call of `operation` on `resource`.
    pub fn new(operation: &'static str, resource: &str) -> Self {
        Self { operation, resource: resource.to_owned() }
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.operation, self.resource)
    }
}

/// Why a call failed.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum Failure {
    /// No answer, or a server's fault: it may have had its effect.
    #[error("{call}: no clear answer: {why}; it is tried again")]
    Unclear {
        /// What was tried.
        call: Call,
        /// What happened.
        why: String,
    },
    /// AWS asks for patience; it had no effect.
    #[error("{call}: throttled ({code}); it is tried again more slowly")]
    Throttled {
        /// What was tried.
        call: Call,
        /// AWS's word.
        code: String,
    },
    /// The resource takes no such call now; it had no effect.
    #[error("{call}: not now ({code}: {message}); it is tried again")]
    Busy {
        /// What was tried.
        call: Call,
        /// AWS's word.
        code: String,
        /// AWS's sentence.
        message: String,
    },
    /// AWS refused; it had no effect.
    #[error("{call}: {code}: {message}{}", advice(.code))]
    Refused {
        /// What was tried.
        call: Call,
        /// AWS's word.
        code: String,
        /// AWS's sentence.
        message: String,
    },
}

impl Failure {
    /// Classifies what the SDK says of a call.
    pub fn of<E: ProvideErrorMetadata + std::error::Error + 'static>(call: Call, error: &SdkError<E, HttpResponse>) -> Self {
        let unclear = |why: String| Failure::Unclear { call: call.clone(), why };
        match error {
            SdkError::ServiceError(service) => {
                let code = service.err().code().unwrap_or("unknown error").to_owned();
                let message = service.err().message().unwrap_or("no message").to_owned();
                let status = service.raw().status().as_u16();
                if THROTTLED.contains(&code.as_str()) || status == 429 {
                    Failure::Throttled { call, code: format!("{code}: {message}") }
                } else if status >= 500 || UNCLEAR.contains(&code.as_str()) {
                    unclear(format!("{code}: {message}"))
                } else if BUSY.contains(&code.as_str()) {
                    Failure::Busy { call, code, message }
                } else {
                    Failure::Refused { call, code, message }
                }
            }
            SdkError::TimeoutError(_) => unclear("time-out".to_owned()),
            SdkError::DispatchFailure(failure) => {
                let why = failure.as_connector_error().map_or_else(|| "not sent".to_owned(), |e| chain(e));
                // Without credentials nothing is ever sent; those of a role may come back.
                unclear(if failure.is_other() && why.contains("credentials") { format!("no credentials: {why}") } else { why })
            }
            SdkError::ResponseError(response) => unclear(format!("unreadable answer ({})", response.raw().status().as_u16())),
            other => Failure::Refused { call, code: "InvalidRequest".to_owned(), message: chain(other) },
        }
    }

    /// AWS's word for a refusal, for now or for good.
    pub fn code(&self) -> Option<&str> {
        match self {
            Failure::Refused { code, .. } | Failure::Busy { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Whether the same call may succeed later without anybody's doing.
    pub fn passes(&self) -> bool {
        !matches!(self, Failure::Refused { .. })
    }
}

/// Words for too many calls, of all services.
const THROTTLED: [&str; 7] = [
    "ThrottlingException",
    "Throttling",
    "TooManyRequestsException",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "SlowDown",
    "KMSThrottlingException",
];

/// Words after which the outcome is looked at.
const UNCLEAR: [&str; 5] = [
    "ConcurrentModificationException",
    "TransactionConflictException",
    "TransactionInProgressException",
    "OperationAborted",
    "RequestTimeout",
];

/// Words for a refusal that ends by itself.
const BUSY: [&str; 3] = ["ContinuousBackupsUnavailableException", "ResourceInUseException", "LimitExceededException"];

/// What a user can do.
fn advice(code: &str) -> &'static str {
    match code {
        "AccessDeniedException" | "AccessDenied" | "UnauthorizedOperation" => "; allow this action in the policy of the role",
        "ExpiredToken" | "ExpiredTokenException" | "UnrecognizedClientException" | "InvalidClientTokenId" | "InvalidSignatureException" => {
            "; give the process valid credentials for this account"
        }
        "KMSAccessDeniedException" | "KMSDisabledException" | "KMSNotFoundException" | "KMSInvalidStateException" => {
            "; check the key, its policy and its state"
        }
        "NoSuchBucket" => "; create the bucket, or name another",
        _ => "",
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
