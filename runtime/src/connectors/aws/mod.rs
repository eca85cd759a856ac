//! The ports of the engine over AWS: Kinesis streams, files of S3, the lease table and sink tables in DynamoDB, files and objects in
//! S3. Calls are tried once each: the engine repeats those that may be repeated.

pub mod dynamodb;
mod fan_out;
pub mod files;
mod kcl;
pub mod kinesis;
pub mod s3;

use leat_aws::Failure;

use crate::engine::ports::PortError;

impl From<Failure> for PortError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unclear { .. } | Failure::Throttled { .. } | Failure::Busy { .. } => PortError::Unclear(failure.to_string()),
            Failure::Refused { .. } => PortError::Fatal(failure.to_string()),
        }
    }
}
