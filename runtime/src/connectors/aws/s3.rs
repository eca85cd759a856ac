//! S3: objects that are written once, and files of sinks. Every put is conditional (`If-None-Match: *`), so nothing is ever
//! replaced; large files are multipart uploads that are completed after their cut.

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, ServerSideEncryption};
use bytes::Bytes;
use leat_aws::{Call as Tried, Failure, SdkConfig};
use leat_runtime_core::row::Part;

use crate::engine::ports::{Call, Completed, Files, Objects, PortError};

/// Smallest part of a multipart upload that is not the last (Amazon S3 multipart upload limits).
const SMALLEST_PART: usize = 5 << 20;

/// Completing an upload is waited for as long as for a body of this size, bytes: about nine minutes.
const COMPLETING: usize = 64 << 20;

/// How long a call with a body of `size` bytes may take.
fn patience(size: usize) -> aws_sdk_s3::config::Builder {
    aws_sdk_s3::config::Builder::default().timeout_config(leat_aws::for_body(size))
}

/// S3, with the key that new objects are encrypted with.
#[derive(Clone)]
pub struct Store {
    client: Client,
    kms_key: Option<String>,
}

/// Bucket and key of `s3://bucket/key`.
pub fn locate(url: &str) -> Result<(&str, &str), PortError> {
    let rest = url.strip_prefix("s3://").and_then(|r| r.split_once('/')).filter(|(bucket, _)| !bucket.is_empty());
    rest.ok_or_else(|| PortError::Fatal(format!("`{url}` is not s3://bucket/key")))
}

impl Store {
    /// S3 through this client.
    pub fn new(client: Client, kms_key: Option<String>) -> Self {
        Self { client, kms_key }
    }

    /// Writes an object unless there is one; what is there is what an earlier try wrote, since names are unique.
    async fn put_once(&self, url: &str, bytes: Bytes) -> Result<(), PortError> {
        let (bucket, key) = locate(url)?;
        let size = bytes.len();
        let request = self.client.put_object().bucket(bucket).key(key).if_none_match("*").body(ByteStream::from(bytes));
        let request = request
            .set_server_side_encryption(self.kms_key.as_ref().map(|_| ServerSideEncryption::AwsKms))
            .set_ssekms_key_id(self.kms_key.clone());
        match request.customize().config_override(patience(size)).send().await {
            Ok(_) => Ok(()),
            Err(error) => {
                let failure = Failure::of(Tried::new("S3 PutObject", url), &error);
                match failure.code() {
                    Some("PreconditionFailed") => Ok(()),
                    // Another put of the name is under way; which of them wins is seen by the next try.
                    Some("ConditionalRequestConflict") => Err(PortError::Unclear(failure.to_string())),
                    _ => Err(failure.into()),
                }
            }
        }
    }

    async fn read(&self, url: &str) -> Result<Bytes, PortError> {
        let (bucket, key) = locate(url)?;
        let answer = self.client.get_object().bucket(bucket).key(key).send().await;
        let answer = answer.map_err(|e| Failure::of(Tried::new("S3 GetObject", url), &e))?;
        let body = answer.body.collect().await.map_err(|e| PortError::Unclear(format!("S3 GetObject {url}: {e}")))?;
        Ok(body.into_bytes())
    }

    /// Whether an object is there although a call for it failed. A failure for good is told with what hinders the look.
    async fn there_after(&self, url: &str, failure: &Failure) -> Result<bool, PortError> {
        match self.exists(url).await {
            Err(PortError::Fatal(why)) if !failure.passes() => Err(PortError::Fatal(format!("{failure}; {why}"))),
            found => Ok(found == Ok(true)),
        }
    }

    async fn exists(&self, url: &str) -> Result<bool, PortError> {
        let (bucket, key) = locate(url)?;
        match self.client.head_object().bucket(bucket).key(key).send().await {
            Ok(_) => Ok(true),
            Err(error) if error.raw_response().is_some_and(|r| r.status().as_u16() == 404) => Ok(false),
            Err(error) if error.raw_response().is_some_and(|r| r.status().as_u16() == 403) => {
                let why = "whether the file is there cannot be seen: allow s3:GetObject and s3:ListBucket in the policy of the role";
                Err(PortError::Fatal(format!("S3 HeadObject {url}: {why}")))
            }
            Err(error) => Err(Failure::of(Tried::new("S3 HeadObject", url), &error).into()),
        }
    }
}

/// Files below a location, as tools see them: `s3://bucket/prefix`.
pub struct Folder {
    client: Client,
    kms_key: Option<String>,
}

impl Folder {
    /// Of an account; new files are encrypted with a key.
    pub fn new(config: &SdkConfig, kms_key: Option<String>) -> Self {
        let config = aws_sdk_s3::config::Builder::from(config).force_path_style(leat_aws::path_style());
        Self { client: Client::from_conf(config.build()), kms_key }
    }

    /// Bucket and key of a file.
    fn key<'a>(location: &'a str, file: &str) -> Result<(&'a str, String), PortError> {
        let (bucket, prefix) = locate(location).or_else(|why| location.strip_prefix("s3://").map(|bucket| (bucket, "")).ok_or(why))?;
        let prefix = prefix.trim_end_matches('/');
        Ok((bucket, if prefix.is_empty() { file.to_owned() } else { format!("{prefix}/{file}") }))
    }

    /// The names of all files, in order.
    pub async fn list(&self, location: &str) -> Result<Vec<String>, PortError> {
        let (bucket, root) = Self::key(location, "")?;
        let (mut files, mut from) = (Vec::new(), None);
        loop {
            let request = self.client.list_objects_v2().bucket(bucket).prefix(&root).set_continuation_token(from);
            let answer = request.send().await.map_err(|e| Failure::of(Tried::new("S3 ListObjectsV2", location), &e))?;
            files.extend(answer.contents().iter().filter_map(|object| object.key()?.strip_prefix(&root)).map(str::to_owned));
            from = answer.next_continuation_token().map(str::to_owned);
            if from.is_none() {
                return Ok(files);
            }
        }
    }

    /// A file; `None`: there is none.
    pub async fn read(&self, location: &str, file: &str) -> Result<Option<Bytes>, PortError> {
        let (bucket, key) = Self::key(location, file)?;
        let answer = match self.client.get_object().bucket(bucket).key(&key).send().await {
            Ok(answer) => answer,
            Err(error) if error.raw_response().is_some_and(|r| r.status().as_u16() == 404) => return Ok(None),
            Err(error) => return Err(Failure::of(Tried::new("S3 GetObject", &key), &error).into()),
        };
        let body = answer.body.collect().await.map_err(|e| PortError::Unclear(format!("S3 GetObject {key}: {e}")))?;
        Ok(Some(body.into_bytes()))
    }

    /// Writes a file, also over another one.
    pub async fn write(&self, location: &str, file: &str, bytes: Bytes) -> Result<(), PortError> {
        let (bucket, key) = Self::key(location, file)?;
        let request = self.client.put_object().bucket(bucket).key(&key).body(ByteStream::from(bytes));
        let request = request
            .set_server_side_encryption(self.kms_key.as_ref().map(|_| ServerSideEncryption::AwsKms))
            .set_ssekms_key_id(self.kms_key.clone());
        request.send().await.map_err(|e| Failure::of(Tried::new("S3 PutObject", &key), &e))?;
        Ok(())
    }
}

/// Objects below a prefix.
pub struct S3Objects {
    store: Store,
    prefix: String,
}

impl S3Objects {
    /// Objects below `prefix`, which is `s3://bucket/…/`.
    pub fn new(store: Store, prefix: &str) -> Self {
        Self { store, prefix: format!("{}/", prefix.trim_end_matches('/')) }
    }
}

impl Objects for S3Objects {
    fn put<'a>(&'a self, name: &'a str, bytes: Bytes) -> Call<'a, ()> {
        Box::pin(async move { self.store.put_once(&format!("{}{name}", self.prefix), bytes).await })
    }

    fn get<'a>(&'a self, name: &'a str) -> Call<'a, Bytes> {
        Box::pin(async move { self.store.read(&format!("{}{name}", self.prefix)).await })
    }

    fn delete<'a>(&'a self, name: &'a str) -> Call<'a, ()> {
        Box::pin(async move {
            let url = format!("{}{name}", self.prefix);
            let (bucket, key) = locate(&url)?;
            let answer = self.store.client.delete_object().bucket(bucket).key(key).send().await;
            answer.map_err(|e| Failure::of(Tried::new("S3 DeleteObject", &url), &e))?;
            Ok(())
        })
    }
}

/// Files of sinks: a destination is `s3://bucket/key`.
pub struct S3Files {
    store: Store,
}

impl S3Files {
    /// Files through this store.
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

impl Files for S3Files {
    fn smallest_part(&self) -> usize {
        SMALLEST_PART
    }

    fn create<'a>(&'a self, destination: &'a str) -> Call<'a, String> {
        Box::pin(async move {
            let (bucket, key) = locate(destination)?;
            let request = self
                .store
                .client
                .create_multipart_upload()
                .bucket(bucket)
                .key(key)
                .set_server_side_encryption(self.store.kms_key.as_ref().map(|_| ServerSideEncryption::AwsKms))
                .set_ssekms_key_id(self.store.kms_key.clone());
            let answer = request.send().await.map_err(|e| Failure::of(Tried::new("S3 CreateMultipartUpload", destination), &e))?;
            answer.upload_id.ok_or_else(|| PortError::Unclear(format!("S3 CreateMultipartUpload {destination}: no id")))
        })
    }

    /// What is said of an upload that is gone differs between stores (S3: `NoSuchUpload`; others fail): after any failure
    /// the file itself tells.
    fn part<'a>(&'a self, destination: &'a str, upload: &'a str, number: u32, bytes: Bytes) -> Call<'a, Option<String>> {
        Box::pin(async move {
            let (bucket, key) = locate(destination)?;
            let number = i32::try_from(number).unwrap_or(i32::MAX);
            let size = bytes.len();
            let request =
                self.store.client.upload_part().bucket(bucket).key(key).upload_id(upload).part_number(number).body(ByteStream::from(bytes));
            match request.customize().config_override(patience(size)).send().await {
                Ok(answer) => {
                    let tag = answer.e_tag.ok_or_else(|| PortError::Unclear(format!("S3 UploadPart {destination}: no ETag")))?;
                    Ok(Some(tag))
                }
                Err(error) => {
                    let failure = Failure::of(Tried::new("S3 UploadPart", destination), &error);
                    if self.store.there_after(destination, &failure).await? { Ok(None) } else { Err(failure.into()) }
                }
            }
        })
    }

    fn put<'a>(&'a self, destination: &'a str, bytes: Bytes) -> Call<'a, ()> {
        Box::pin(self.store.put_once(destination, bytes))
    }

    fn complete<'a>(&'a self, destination: &'a str, upload: &'a str, parts: &'a [Part]) -> Call<'a, Completed> {
        Box::pin(async move {
            let (bucket, key) = locate(destination)?;
            let parts = parts.iter().map(|p| {
                let number = i32::try_from(p.number).unwrap_or(i32::MAX);
                CompletedPart::builder().part_number(number).e_tag(&p.tag).build()
            });
            let list = CompletedMultipartUpload::builder().set_parts(Some(parts.collect())).build();
            let request = self.store.client.complete_multipart_upload().bucket(bucket).key(key).upload_id(upload).multipart_upload(list);
            // S3 may take minutes to put the parts together, and answers only then.
            match request.customize().config_override(patience(COMPLETING)).send().await {
                Ok(_) => Ok(Completed::Done),
                Err(error) => {
                    let failure = Failure::of(Tried::new("S3 CompleteMultipartUpload", destination), &error);
                    match failure.code() {
                        Some("InvalidPart" | "InvalidPartOrder" | "EntityTooSmall") => Ok(Completed::WrongPart),
                        // It was completed before, by this owner or another; the names of files are unique.
                        _ if self.store.there_after(destination, &failure).await? => Ok(Completed::Done),
                        _ => Err(failure.into()),
                    }
                }
            }
        })
    }
}
