//! Values of Redis, written only when they are newer than what is there.
//!
//! A value is a string, or a field of a hash. Beside it stands its guard, under a key of its own in the same slot: a script
//! compares and writes both at once (<https://redis.io/docs/latest/develop/programmability/eval-intro/>). Readers see plain values.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, IntoConnectionInfo, RedisError, Script, ServerErrorKind, TlsCertificates};

use super::tables::one_by_one;
use crate::engine::ports::{Call, Guard, PortError, Tables};
use crate::operators::table::GUARDS;
use crate::output::{Attribute, Item};

/// Longest that a connection may take.
const CONNECT: Duration = Duration::from_secs(3);
/// Longest that an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// Writes under way at once, on one connection.
const AT_ONCE: usize = 128;
/// How much longer than its value a guard lives: whoever is late by more than this may bring a value back.
const GUARDED: Duration = Duration::from_secs(24 * 3600);

/// KEYS: value, guard. ARGV: field or empty, value, born, version, cut, life of the value and of the guard in ms or 0. Redis takes
/// nothing of a script back that fails in the middle, so the guard comes last: what is not guarded is written again.
const WRITE: &str = r"
local hash = ARGV[1] ~= ''
local found = redis.call('TYPE', KEYS[1]).ok
if found ~= 'none' and found ~= (hash and 'hash' or 'string') then
  return redis.error_reply('LEATTYPE there is a ' .. found)
end
local there
if hash then there = redis.call('HGET', KEYS[2], ARGV[1]) else there = redis.call('GET', KEYS[2]) end
if there then
  local old = {string.match(there, '^(%-?%d+) (%-?%d+) (%d+)$')}
  if #old ~= 3 then return redis.error_reply('LEATGUARD its guard cannot be read') end
  local newer = false
  for i = 1, 3 do
    local a, b = tonumber(old[i]), tonumber(ARGV[i + 2])
    if a ~= b then newer = a < b; break end
  end
  if not newer then return 0 end
end
local guard = ARGV[3] .. ' ' .. ARGV[4] .. ' ' .. ARGV[5]
if hash then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  if ARGV[6] == '0' then redis.call('PERSIST', KEYS[1]) else redis.call('PEXPIRE', KEYS[1], ARGV[6]) end
  redis.call('HSET', KEYS[2], ARGV[1], guard)
  if ARGV[6] == '0' then redis.call('PERSIST', KEYS[2]) else redis.call('PEXPIRE', KEYS[2], ARGV[7]) end
elseif ARGV[6] == '0' then
  redis.call('SET', KEYS[1], ARGV[2])
  redis.call('SET', KEYS[2], guard)
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[6])
  redis.call('SET', KEYS[2], guard, 'PX', ARGV[7])
end
return 1
";

/// What a sink writes to.
#[derive(Debug, Clone)]
pub struct Values {
    /// `redis://host:port/database`, or `rediss://` with TLS.
    pub url: String,
    /// Folder of a secret that has `password`, and `username` where there is one; `ca.crt` where the authorities are not known
    /// publicly. Read anew for each connection.
    pub secret: Option<PathBuf>,
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
        let authorities = self.file("ca.crt")?;
        match (self.file("username")?, self.file("password")?) {
            (name, Some(password)) => {
                let settings = info.redis_settings().clone().set_password(password);
                info = info.set_redis_settings(match name {
                    Some(name) => settings.set_username(name),
                    None => settings,
                });
            }
            (None, None) if authorities.is_some() || self.values.secret.is_none() => {}
            _ => return Err(PortError::Fatal(format!("{}: its secret has no `password`", self.what()))),
        }
        let client = match authorities {
            Some(pem) => Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(pem.into_bytes()) }),
            None => Client::open(info),
        };
        let client = client.map_err(wrong)?;
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(ANSWER));
        let made = client.get_multiplexed_async_connection_with_config(&config).await.map_err(|e| self.failed(&e, None))?;
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(made.clone());
        Ok(made)
    }

    /// What an error means, and what follows; `key`: what was to be written.
    fn failed(&self, error: &RedisError, key: Option<&str>) -> PortError {
        let what = match key {
            Some(key) => format!("{}, key `{}`", self.what(), key.chars().take(128).collect::<String>()),
            None => self.what(),
        };
        let why = format!("{what}: {error}");
        // The library keeps only the words of some refusals, and a script those of a command that it may not use.
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
            ErrorKind::Server(ServerErrorKind::NoPerm) => PortError::Fatal(why),
            _ if said("has no permissions") || said("user executing the script can't") => PortError::Fatal(why),
            _ if said("DB index is out of range") || error.kind() == ErrorKind::InvalidClientConfig => PortError::Fatal(why),
            _ if coded(&["LEATTYPE", "WRONGTYPE"]) => {
                PortError::Fatal(format!("{why}: it is of another type than this sink's; take another `key`, or delete it"))
            }
            _ if coded(&["LEATGUARD"]) => PortError::Fatal(format!("{why}: delete `{}`", key.map(guard_key).unwrap_or_default())),
            // The connection may be of no use any more, or lead to a server that was the first until now.
            _ => {
                *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = None;
                PortError::Unclear(why)
            }
        }
    }
}

/// Where the guard of a key stands: in the slot of the key, for which Redis hashes what is between its first braces.
fn guard_key(key: &str) -> String {
    if key.contains('{') { format!("{GUARDS}of:{key}") } else { format!("{GUARDS}{{{key}}}") }
}

fn text(attribute: &Attribute) -> &str {
    match attribute {
        Attribute::S(text) | Attribute::N(text) => text,
        Attribute::Bool(_) | Attribute::Null => "",
    }
}

impl Tables for RedisTables {
    fn put<'a>(&'a self, table: &'a str, items: &'a [Item], guard: Guard) -> Call<'a, Vec<usize>> {
        Box::pin(async move {
            let server = self.servers.get(table).ok_or_else(|| PortError::Fatal(format!("there is no table `{table}`")))?;
            let connection = server.connection().await?;
            let life = server.values.time_to_live.map_or((0, 0), |life| (life.as_millis(), (life + GUARDED).as_millis()));
            let writes = items.iter().map(|item| {
                let mut connection = connection.clone();
                async move {
                    let key = item.key.first().map_or("", |(_, key)| text(key));
                    let field = item.key.get(1).map_or("", |(_, field)| text(field));
                    let value = item.attributes.values().next().map_or("", text);
                    let mut call = self.script.prepare_invoke();
                    call.key(key).key(guard_key(key)).arg(field).arg(value);
                    call.arg(guard.born).arg(item.version).arg(guard.cut).arg(life.0.to_string()).arg(life.1.to_string());
                    call.invoke_async::<i64>(&mut connection).await.map(drop).map_err(|error| server.failed(&error, Some(key)))
                }
            });
            one_by_one(writes, AT_ONCE).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_are_in_the_slots_of_their_keys() {
        for (key, guard) in [
            ("metrics:c-1", "leat:guard:{metrics:c-1}"),
            ("{c-1}:metrics", "leat:guard:of:{c-1}:metrics"),
            ("{metrics:c-1}", "leat:guard:of:{metrics:c-1}"),
        ] {
            assert_eq!(guard_key(key), guard);
        }
    }
}
