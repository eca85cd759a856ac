//! SCRAM as Kafka has it (RFC 5802, RFC 7677): the client's side, without channel binding.

use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac, pbkdf2};

/// Fewest rounds that a server may ask for: RFC 7677 wants 4,096 at least.
const LEAST_ROUNDS: u32 = 4_096;
/// Most rounds that a server may ask for: more would only hold this worker up.
const MOST_ROUNDS: u32 = 1_000_000;

/// The hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// SCRAM-SHA-256.
    Sha256,
    /// SCRAM-SHA-512.
    Sha512,
}

impl Mechanism {
    /// As it is called between client and broker.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "SCRAM-SHA-256",
            Self::Sha512 => "SCRAM-SHA-512",
        }
    }

    fn parts(self) -> (&'static digest::Algorithm, hmac::Algorithm, pbkdf2::Algorithm) {
        match self {
            Self::Sha256 => (&digest::SHA256, hmac::HMAC_SHA256, pbkdf2::PBKDF2_HMAC_SHA256),
            Self::Sha512 => (&digest::SHA512, hmac::HMAC_SHA512, pbkdf2::PBKDF2_HMAC_SHA512),
        }
    }
}

enum State {
    /// The first message is to be answered.
    First,
    /// The proof was sent; this is how the server shows that it knows the password too.
    Proven(Vec<u8>),
    Done,
}

/// One exchange.
pub struct Scram {
    mechanism: Mechanism,
    password: String,
    nonce: String,
    bare: String,
    state: State,
}

impl Scram {
    /// An exchange for a user.
    pub fn new(mechanism: Mechanism, user: &str, password: &str) -> Result<Self, String> {
        let mut random = [0; 24];
        SystemRandom::new().fill(&mut random).map_err(|_| "there are no random numbers".to_owned())?;
        Ok(Self::with_nonce(mechanism, user, password, &STANDARD.encode(random)))
    }

    fn with_nonce(mechanism: Mechanism, user: &str, password: &str, nonce: &str) -> Self {
        let user = user.replace('=', "=3D").replace(',', "=2C");
        let (password, nonce) = (password.to_owned(), nonce.to_owned());
        Self { mechanism, password, bare: format!("n={user},r={nonce}"), nonce, state: State::First }
    }

    /// The first message.
    pub fn first(&self) -> Vec<u8> {
        format!("n,,{}", self.bare).into_bytes()
    }

    /// The message that follows on an answer; `None`: both know the other.
    pub fn next(&mut self, answer: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let answer = std::str::from_utf8(answer).map_err(|_| "an answer to SCRAM that is no text".to_owned())?;
        let field = |name: char| answer.split(',').find_map(|f| f.strip_prefix(name)?.strip_prefix('='));
        if let Some(error) = field('e') {
            return Err(format!("it refuses SCRAM: {error}"));
        }
        match std::mem::replace(&mut self.state, State::Done) {
            State::First => {
                let wrong = || "an answer to SCRAM that cannot be read".to_owned();
                let (nonce, salt) = (field('r').ok_or_else(wrong)?, field('s').ok_or_else(wrong)?);
                let salt = STANDARD.decode(salt).map_err(|_| wrong())?;
                let rounds: u32 = field('i').and_then(|i| i.parse().ok()).ok_or_else(wrong)?;
                if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
                    return Err("an answer to another SCRAM exchange".to_owned());
                }
                if !(LEAST_ROUNDS..=MOST_ROUNDS).contains(&rounds) {
                    return Err(format!("it asks for {rounds} rounds of SCRAM; {LEAST_ROUNDS} to {MOST_ROUNDS} are taken"));
                }
                let (proof, signature) = self.prove(answer, nonce, &salt, rounds);
                self.state = State::Proven(signature);
                Ok(Some(proof))
            }
            State::Proven(signature) => {
                let shown = field('v').and_then(|v| STANDARD.decode(v).ok());
                if shown.as_ref() == Some(&signature) { Ok(None) } else { Err("it does not know the password itself".to_owned()) }
            }
            State::Done => Err("an answer to SCRAM too many".to_owned()),
        }
    }

    /// The proof, and the signature that the server has to answer.
    fn prove(&self, answer: &str, nonce: &str, salt: &[u8], rounds: u32) -> (Vec<u8>, Vec<u8>) {
        let (digest, hmac, pbkdf2) = self.mechanism.parts();
        let mut salted = vec![0; digest.output_len()];
        let rounds = NonZeroU32::new(rounds).unwrap_or(NonZeroU32::MIN);
        pbkdf2::derive(pbkdf2, rounds, salt, self.password.as_bytes(), &mut salted);
        let salted = hmac::Key::new(hmac, &salted);
        let client = hmac::sign(&salted, b"Client Key");
        let stored = digest::digest(digest, client.as_ref());
        let last = format!("c={},r={nonce}", STANDARD.encode("n,,"));
        let message = format!("{},{answer},{last}", self.bare);
        let signature = hmac::sign(&hmac::Key::new(hmac, stored.as_ref()), message.as_bytes());
        let proof: Vec<u8> = client.as_ref().iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
        let server = hmac::sign(&hmac::Key::new(hmac, hmac::sign(&salted, b"Server Key").as_ref()), message.as_bytes());
        (format!("{last},p={}", STANDARD.encode(proof)).into_bytes(), server.as_ref().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchange that RFC 7677, section 3, prints.
    fn printed() -> Scram {
        Scram::with_nonce(Mechanism::Sha256, "user", "pencil", "rOprNGfwEbeRWgbNEkqO")
    }

    const ANSWER: &[u8] = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    #[test]
    fn the_exchange_is_the_one_that_the_rfc_prints() {
        let mut scram = printed();
        assert_eq!(scram.first(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let proof = scram.next(ANSWER).expect("a proof").expect("another message");
        let printed = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        assert_eq!(String::from_utf8(proof).as_deref(), Ok(printed));
        assert_eq!(scram.next(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), Ok(None));
    }

    #[test]
    fn nobody_is_believed_who_does_not_know_the_password() {
        let mut scram = printed();
        scram.next(ANSWER).expect("a proof");
        assert!(scram.next(b"v=AAAATRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=").is_err());
        for answer in [
            &b"r=another,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"[..],
            b"r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            b"r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=1",
            b"r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4000000000",
            b"e=unknown-user",
            b"\xff",
        ] {
            assert!(printed().next(answer).is_err(), "{}", String::from_utf8_lossy(answer));
        }
    }
}
