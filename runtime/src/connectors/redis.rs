//! Values of Redis, written only when they are newer than what is there.
//!
//! A value is a string, or a field of a hash. Beside it stands its guard, under a key of its own in the same slot: a script
//! compares and writes both at once (<https://redis.io/docs/latest/develop/programmability/eval-intro/>). Readers see plain values.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, IntoConnectionInfo, RedisError, Script, ServerErrorKind};

use crate::engine::ports::{Call, Guard, PortError, Tables};
use crate::output::{Attribute, Item};

/// Longest that a connection may take.
const CONNECT: Duration = Duration::from_secs(3);
/// Longest that an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// Writes under way at once, on one connection.
const AT_ONCE: usize = 128;
/// How much longer than its value a guard lives: whoever is late by more than this may bring a value back.
const GUARDED: Duration = Duration::from_secs(24 * 3600);

/// KEYS: value, guard. ARGV: field or empty, value, born, version, cut, life of the value and of the guard in ms or 0.
const WRITE: &str = r"
local hash = ARGV[1] ~= ''
local there
if hash then there = redis.call('HGET', KEYS[2], ARGV[1]) else there = redis.call('GET', KEYS[2]) end
if there then
  local new = {tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])}
  local i, newer = 1, false
  for old in string.gmatch(there, '%S+') do
    old = tonumber(old)
    if old ~= new[i] then newer = old < new[i]; break end
    i = i + 1
  end
  if not newer then return 0 end
else
  local found = redis.call('TYPE', KEYS[1]).ok
  if found ~= 'none' and found ~= (hash and 'hash' or 'string') then
    return redis.error_reply('WRONGTYPE there is a ' .. found)
  end
end
local guard = ARGV[3] .. ' ' .. ARGV[4] .. ' ' .. ARGV[5]
if hash then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  redis.call('HSET', KEYS[2], ARGV[1], guard)
else
  redis.call('SET', KEYS[1], ARGV[2])
  redis.call('SET', KEYS[2], guard)
end
if ARGV[6] ~= '0' then
  redis.call('PEXPIRE', KEYS[1], ARGV[6])
  redis.call('PEXPIRE', KEYS[2], ARGV[7])
elseif hash then
  redis.call('PERSIST', KEYS[1])
  redis.call('PERSIST', KEYS[2])
end
return 1
";

/// What a sink writes to.
#[derive(Debug, Clone)]
pub struct Values {
    /// `redis://host:port/database`, or `rediss://` with TLS.
    pub url: String,
    /// Folder of a secret that has `password`, and `username` where there is one. Read anew for each connection.
    pub secret: Option<PathBuf>,
    /// The value is that of the row's only column as text; else all columns as a JSON object.
    pub plain: bool,
    /// How long a key lives behind the last write.
    pub time_to_live: Option<Duration>,
}

struct Server {
    values: Values,
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// The values that sinks of a pipeline write, by the names of their tables.
pub struct RedisTables {
    servers: HashMap<String, Server>,
    script: Script,
}

impl RedisTables {
    /// These.
    pub fn new(values: HashMap<String, Values>) -> Self {
        let server = |(name, values): (String, Values)| (name, Server { values, connection: Mutex::default() });
        Self { servers: values.into_iter().map(server).collect(), script: Script::new(WRITE) }
    }
}

impl Server {
    /// What an error begins with; the address without what may be secret in it.
    fn what(&self) -> String {
        let address = self.values.url.split(['?', '#']).next().unwrap_or_default();
        format!("Redis {}", address.rsplit_once('@').map_or(address, |(_, host)| host))
    }

    fn file(&self, name: &str) -> Result<Option<String>, PortError> {
        let Some(path) = self.values.secret.as_ref().map(|folder| folder.join(name)) else { return Ok(None) };
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(PortError::Unclear(format!("{}: `{name}` of its secret cannot be read: {error}", self.what()))),
        }
    }

    async fn connection(&self) -> Result<MultiplexedConnection, PortError> {
        if let Some(connection) = &*self.connection.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(connection.clone());
        }
        let wrong = |error: RedisError| PortError::Fatal(format!("{}: {error}", self.what()));
        let mut info = self.values.url.as_str().into_connection_info().map_err(wrong)?;
        if self.values.secret.is_some() {
            let missing = || PortError::Fatal(format!("{}: its secret has no `password`", self.what()));
            let mut settings = info.redis_settings().clone().set_password(self.file("password")?.ok_or_else(missing)?);
            if let Some(name) = self.file("username")? {
                settings = settings.set_username(name);
            }
            info = info.set_redis_settings(settings);
        }
        let client = Client::open(info).map_err(wrong)?;
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(ANSWER));
        let made = client.get_multiplexed_async_connection_with_config(&config).await.map_err(|e| self.failed(&e))?;
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(made.clone());
        Ok(made)
    }

    /// What an error means, and what follows.
    fn failed(&self, error: &RedisError) -> PortError {
        let why = format!("{}: {error}", self.what());
        // The library keeps only the words of a refusal to take up a database.
        let said = |words: &str| error.detail().is_some_and(|detail| detail.contains(words));
        let coded = |codes: &[&str]| codes.iter().any(|code| error.code() == Some(code));
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::CrossSlot) => {
                PortError::Fatal(format!("{why}: it is a cluster, which does not work yet; name an endpoint with cluster mode disabled"))
            }
            ErrorKind::AuthenticationFailed => PortError::Fatal(format!("{} does not let this worker in: {error}", self.what())),
            _ if coded(&["WRONGPASS", "NOAUTH"]) || said("Authentication required") => {
                PortError::Fatal(format!("{} does not let this worker in: {error}", self.what()))
            }
            _ if said("DB index is out of range") => PortError::Fatal(why),
            ErrorKind::Server(ServerErrorKind::NoPerm) | ErrorKind::InvalidClientConfig => PortError::Fatal(why),
            _ if coded(&["WRONGTYPE"]) => PortError::Fatal(format!("{why}: this sink did not write what is there; take another `key`")),
            // The connection may be of no use any more, or lead to a server that was the first until now.
            _ => {
                *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = None;
                PortError::Unclear(why)
            }
        }
    }

    fn value(&self, item: &Item) -> String {
        match item.attributes.values().next() {
            Some(Attribute::S(text) | Attribute::N(text)) if self.values.plain => text.clone(),
            Some(Attribute::Bool(flag)) if self.values.plain => flag.to_string(),
            _ => json(item),
        }
    }
}

/// The attributes of an item as a JSON object; numbers as they are written.
fn json(item: &Item) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let members: Vec<String> = item
        .attributes
        .iter()
        .map(|(name, value)| {
            let value = match value {
                Attribute::S(text) => quoted(text),
                Attribute::N(number) => number.clone(),
                Attribute::Bool(flag) => flag.to_string(),
                Attribute::Null => "null".to_owned(),
            };
            format!("{}:{value}", quoted(name))
        })
        .collect();
    format!("{{{}}}", members.join(","))
}

/// Where the guard of a key stands: in the slot of the key, for which Redis hashes what is between its first braces.
fn guard_key(key: &str) -> String {
    let tagged = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).is_some_and(|(tag, _)| !tag.is_empty());
    if tagged { format!("leat:guard:{key}") } else { format!("leat:guard:{{{key}}}") }
}

fn text(attribute: &Attribute) -> &str {
    match attribute {
        Attribute::S(text) | Attribute::N(text) => text,
        Attribute::Bool(_) | Attribute::Null => "",
    }
}

impl Tables for RedisTables {
    fn put<'a>(&'a self, table: &'a str, items: &'a [Item], guard: Guard) -> Call<'a, ()> {
        Box::pin(async move {
            let server = self.servers.get(table).ok_or_else(|| PortError::Fatal(format!("there is no table `{table}`")))?;
            let connection = server.connection().await?;
            let life = server.values.time_to_live.map_or((0, 0), |life| (life.as_millis(), (life + GUARDED).as_millis()));
            let writes = items.iter().map(|item| {
                let mut connection = connection.clone();
                async move {
                    let key = item.key.first().map_or("", |(_, key)| text(key));
                    let field = item.key.get(1).map_or("", |(_, field)| text(field));
                    let mut call = self.script.prepare_invoke();
                    call.key(key).key(guard_key(key)).arg(field).arg(server.value(item));
                    call.arg(guard.born).arg(item.version).arg(guard.cut).arg(life.0.to_string()).arg(life.1.to_string());
                    call.invoke_async::<i64>(&mut connection).await.map(drop).map_err(|error| server.failed(&error))
                }
            });
            futures::stream::iter(writes).buffer_unordered(AT_ONCE).try_collect().await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_are_in_the_slots_of_their_keys() {
        for (key, guard) in
            [("metrics:c-1", "leat:guard:{metrics:c-1}"), ("{c-1}:metrics", "leat:guard:{c-1}:metrics"), ("a{}b", "leat:guard:{a{}b}")]
        {
            assert_eq!(guard_key(key), guard);
        }
    }
}
