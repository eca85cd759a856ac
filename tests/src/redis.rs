//! A Redis, and its own client.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::kafka::certificates;
use crate::process::{Program, free_port, until};

/// Password of everybody.
pub const PASSWORD: &str = "pass-word";

/// A server that keeps what it has acknowledged.
pub struct Redis {
    /// Its port on loopback.
    pub port: u16,
    /// The one where it speaks TLS, when it is closed: with a certificate of the authority in `ca.crt`.
    pub tls: u16,
    closed: bool,
    program: Option<Program>,
    start: Box<dyn Fn() -> Program + Send + Sync>,
}

impl Redis {
    /// Starts one with its files in `folder`; `closed`: to those who do not know its password; then it speaks TLS too.
    pub async fn start(folder: &Path, closed: bool) -> Self {
        let (port, tls, folder) = (free_port(), free_port(), folder.to_owned());
        if closed {
            certificates(&folder, "127.0.0.1");
        }
        let start = Box::new(move || {
            let mut command = Command::new("redis-server");
            command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""]);
            if closed {
                command.args(["--requirepass", PASSWORD, "--tls-port", &tls.to_string(), "--tls-auth-clients", "no"]);
                for (option, file) in [("cert", "broker.crt"), ("key", "broker.key"), ("ca-cert", "ca.crt")] {
                    command.arg(format!("--tls-{option}-file")).arg(folder.join(file));
                }
            }
            command.args(["--appendonly", "yes", "--appendfsync", "always", "--dir"]).arg(&folder);
            Program::start("redis", &folder, &mut command)
        });
        let mut redis = Self { port, tls, closed, program: None, start };
        redis.restart().await;
        redis
    }

    /// Kills it and starts it again.
    pub async fn restart(&mut self) {
        self.kill();
        self.program = Some((self.start)());
        until("Redis", Duration::from_secs(20), async || {
            let said = self.ask(&["PING"]);
            if said == "PONG" { Ok(()) } else { Err(said) }
        })
        .await;
    }

    /// Kills it.
    pub fn kill(&mut self) {
        if let Some(mut program) = self.program.take() {
            program.kill();
        }
    }

    /// What `redis-cli` answers to a command, without the end of its last line.
    pub fn ask(&self, command: &[&str]) -> String {
        let mut cli = Command::new("redis-cli");
        cli.args(["-p", &self.port.to_string()]).args(command);
        if self.closed {
            cli.env("REDISCLI_AUTH", PASSWORD);
        }
        let output = cli.output().expect("redis-cli starts");
        String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned()
    }
}
