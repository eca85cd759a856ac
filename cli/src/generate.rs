//! Clickstream events that look real, from a seed: each event is a function of the seed and its number, so a run can
//! stop and go on anywhere, and the right answer is known.

use std::collections::BTreeMap;
use std::fmt::Write;

use leat_runtime::codecs::time::format_millis;

/// Time of the first event: 2026-01-05T00:00:00Z.
const START: i64 = 1_767_571_200_000;
/// Milliseconds between two events.
const STEP: i64 = 4;
/// Campaigns.
const CAMPAIGNS: u64 = 200;
/// Cookies.
const COOKIES: u64 = 40_000;
/// A retry repeats an event at most so many events back.
const RETRY_REACH: u64 = 20_000;
/// An event counts as late when it is so far behind, ms: beyond lateness and out-of-orderness of the example.
const LATE_BY: i64 = 20 * 60_000;

const AGENTS: [&str; 8] = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.4 Safari/605.1.15",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (X11; Linux x86_64; rv:143.0) Gecko/20100101 Firefox/143.0",
    "Mozilla/5.0 (iPad; CPU OS 18_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.4 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Linux; Android 14; SM-S921B) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/28.0 Chrome/130.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36 Edg/141.0.0.0",
];
const PAGES: [&str; 12] =
    ["home", "search", "category", "product", "cart", "checkout", "account", "help", "stores", "offers", "reviews", "wishlist"];
const WORDS: [&str; 24] = [
    "summer",
    "linen",
    "walnut",
    "ceramic",
    "outdoor",
    "classic",
    "compact",
    "stainless",
    "organic",
    "vintage",
    "thermal",
    "modular",
    "recycled",
    "waterproof",
    "folding",
    "cordless",
    "handmade",
    "insulated",
    "magnetic",
    "portable",
    "breathable",
    "adjustable",
    "wireless",
    "bamboo",
];

/// What became of an event, as the example's pipeline must see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Counted.
    Good,
    /// The repeat of an earlier one.
    Retry,
    /// Good, but after its window was closed.
    Late,
    /// Not JSON.
    Malformed,
    /// JSON that the schema refuses.
    Schema,
    /// A type that the rules do not know.
    UnknownType,
    /// A spend below zero.
    NegativeSpend,
}

/// The facts of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its number, from 0; a retry has its original's facts.
    pub number: u64,
    /// What becomes of it.
    pub fate: Fate,
    /// Event time, ms.
    pub time: i64,
    /// `view`, `click` or `purchase`.
    pub kind: &'static str,
    /// Campaign, if any.
    pub campaign: Option<u64>,
    /// Spend in units of 0.0001.
    pub spend: i64,
    /// Cookie.
    pub cookie: u64,
}

/// Random numbers by hashing a counter (SplitMix64, Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }
}

fn random(seed: u64, number: u64) -> Random {
    let mut mix = Random(seed ^ number.wrapping_mul(0xD6E8_FEB8_6659_FD93));
    mix.next();
    mix
}

/// The facts of event `number`.
pub fn event(seed: u64, number: u64) -> Event {
    let mut r = random(seed, number);
    let class = r.below(1000);
    if class < 30 && number > 0 {
        let back = 1 + r.below(RETRY_REACH.min(number));
        let original = event(seed, number - back);
        if original.fate == Fate::Good {
            return Event { fate: Fate::Retry, ..original };
        }
    }
    let now = START + number as i64 * STEP;
    let jitter = if r.below(10) < 3 { r.below(8_000) as i64 } else { r.below(300) as i64 };
    let kind = match r.below(100) {
        0..80 => "view",
        80..97 => "click",
        _ => "purchase",
    };
    let campaign = (r.below(5) > 0).then(|| r.below(CAMPAIGNS));
    let spend = if kind == "view" { r.below(50) as i64 } else { r.below(2_500_000) as i64 };
    let cookie = r.below(COOKIES);
    let fate = match class {
        30..32 if now - START > 2 * LATE_BY => Fate::Late,
        32..34 => Fate::Malformed,
        34..36 => Fate::Schema,
        36..37 => Fate::UnknownType,
        37..38 => Fate::NegativeSpend,
        _ => Fate::Good,
    };
    let late_by = if fate == Fate::Late { LATE_BY + r.below(600_000) as i64 } else { jitter };
    Event { number, fate, time: now - late_by, kind, campaign, spend, cookie }
}

/// Writes event `number` as it goes into the stream.
pub fn write(seed: u64, number: u64, out: &mut Vec<u8>) {
    write_at(seed, number, START, out);
}

/// Writes event `number` of a run whose first event is at `first`, ms.
pub fn write_at(seed: u64, number: u64, first: i64, out: &mut Vec<u8>) {
    let event = event(seed, number);
    let start = out.len();
    let text = body(seed, &event, first - START);
    out.extend_from_slice(text.as_bytes());
    if event.fate == Fate::Malformed {
        // Cut off, or with a byte that is not UTF-8.
        if event.number.is_multiple_of(2) { out.truncate(start + text.len() / 2) } else { out[start + 20] = 0xff }
    }
}

fn body(seed: u64, event: &Event, later: i64) -> String {
    let mut r = random(seed ^ 0x5EED, event.number);
    let mut out = String::with_capacity(2_600);
    let word = |r: &mut Random| WORDS[r.below(WORDS.len() as u64) as usize];
    let page = PAGES[r.below(PAGES.len() as u64) as usize];
    let time = match (event.fate, event.number % 2) {
        (Fate::Schema, 0) => "10000-01-01T00:00:00.000Z".to_owned(),
        _ => format_millis(event.time + later),
    };
    let cookie = if (event.fate, event.number % 2) == (Fate::Schema, 1) {
        "7".to_owned()
    } else {
        format!("\"c-{:08x}\"", event.cookie.wrapping_mul(2_654_435_761) as u32)
    };
    let kind = if event.fate == Fate::UnknownType { "hover" } else { event.kind };
    let spend = if event.fate == Fate::NegativeSpend { -1 - event.spend } else { event.spend };
    let (sign, spend) = (if spend < 0 { "-" } else { "" }, spend.abs());
    // Writing to a String cannot fail.
    let _ = write!(out, "{{\"event_id\":\"{:016x}{:016x}\",\"cookie_id\":{cookie},\"user_id\":", r.next(), event.number);
    let _ = if r.below(3) == 0 { write!(out, "\"u-{:07}\"", r.below(9_000_000)) } else { write!(out, "null") };
    let _ = write!(out, ",\"ts\":\"{time}\",\"type\":\"{kind}\",\"campaign_id\":");
    let _ = match event.campaign {
        Some(campaign) => write!(out, "\"cmp-{campaign:04}\""),
        None => write!(out, "null"),
    };
    let _ = write!(out, ",\"spend\":{sign}{}.{:04}", spend / 10_000, spend % 10_000);
    let source = ["web", "web", "ios", "android", "backend"][r.below(5) as usize];
    let _ = write!(
        out,
        ",\"source\":\"{source}\",\"url\":\"https://shop.example.com/{page}/{}-{}?ref={}&pos={}\"",
        word(&mut r),
        word(&mut r),
        word(&mut r),
        r.below(60)
    );
    let _ = if r.below(2) == 0 {
        write!(out, ",\"referrer\":\"https://search.example.org/?q={}+{}\"", word(&mut r), word(&mut r))
    } else {
        write!(out, ",\"referrer\":null")
    };
    let agent = AGENTS[(event.cookie % AGENTS.len() as u64) as usize];
    // Addresses of the documentation ranges (RFC 5737) and of private networks: nobody's.
    let _ = write!(
        out,
        ",\"user_agent\":\"{agent}\",\"ip\":\"{}.{}\"",
        ["203.0.113", "198.51.100", "192.0.2"][r.below(3) as usize],
        1 + event.cookie % 254
    );
    let _ = write!(
        out,
        ",\"device\":{{\"screen\":\"{}x{}\",\"language\":\"{}\",\"time_zone\":\"{}\",\"touch\":{},\"pixel_ratio\":{}}}",
        360 + 8 * r.below(190),
        640 + 8 * r.below(100),
        ["en-US", "en-GB", "de-DE", "fr-FR", "ja-JP", "pt-BR"][r.below(6) as usize],
        ["America/New_York", "Europe/Berlin", "Asia/Tokyo", "America/Sao_Paulo"][r.below(4) as usize],
        r.below(2) == 0,
        1 + r.below(3)
    );
    let _ = write!(out, ",\"properties\":{{\"session\":\"{:016x}\",\"experiment\":[", r.next());
    for i in 0..4 {
        let _ = write!(
            out,
            "{}{{\"name\":\"{}-{}\",\"variant\":\"{}\"}}",
            if i > 0 { "," } else { "" },
            word(&mut r),
            word(&mut r),
            ["a", "b", "control"][r.below(3) as usize]
        );
    }
    let _ = write!(out, "],\"items\":[");
    for i in 0..3 + r.below(3) {
        let _ = write!(
            out,
            "{}{{\"sku\":\"{:08}\",\"title\":\"{} {} {}\",\"price\":{}.{:02},\"stock\":{},\"tags\":[\"{}\",\"{}\"]}}",
            if i > 0 { "," } else { "" },
            r.below(100_000_000),
            word(&mut r),
            word(&mut r),
            word(&mut r),
            r.below(400),
            r.below(100),
            r.below(900),
            word(&mut r),
            word(&mut r)
        );
    }
    let _ = write!(
        out,
        "],\"timing\":{{\"dns\":{},\"connect\":{},\"first_byte\":{},\"paint\":{},\"load\":{}}},\"note\":\"",
        r.below(80),
        r.below(120),
        r.below(600),
        r.below(1500),
        r.below(5000)
    );
    let wanted = 1_500 + r.below(900) as usize;
    while out.len() < wanted {
        out.push_str(word(&mut r));
        out.push(' ');
    }
    out.push_str("\"}}");
    out
}

/// The right answer for the first `count` events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Number of events by fate.
    pub fates: BTreeMap<Fate, u64>,
    /// (campaign, minute in ms) → clicks, spend in units of 0.0001.
    pub counters: BTreeMap<(u64, i64), (u64, i64)>,
}

/// Computes the right answer the plain way.
pub fn answer(seed: u64, count: u64) -> Answer {
    let mut answer = Answer::default();
    for number in 0..count {
        let event = event(seed, number);
        *answer.fates.entry(event.fate).or_default() += 1;
        if let (Fate::Good, Some(campaign)) = (event.fate, event.campaign) {
            let counter = answer.counters.entry((campaign, event.time.div_euclid(60_000) * 60_000)).or_default();
            counter.0 += u64::from(event.kind == "click");
            counter.1 += event.spend;
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_size_and_the_mix_that_the_docs_say() {
        let mut sizes = Vec::new();
        for number in 0..20_000 {
            let mut out = Vec::new();
            write(7, number, &mut out);
            let event = event(7, number);
            if event.fate != Fate::Malformed {
                assert!(serde_json::from_slice::<serde_json::Value>(&out).is_ok(), "{}", String::from_utf8_lossy(&out));
                sizes.push(out.len());
            } else {
                assert!(serde_json::from_slice::<serde_json::Value>(&out).is_err());
            }
        }
        assert!(sizes.iter().all(|s| (1_400..=2_600).contains(s)), "{:?} {:?}", sizes.iter().min(), sizes.iter().max());
        let answer = answer(7, 1_000_000);
        assert!(answer.fates.len() == 7 && answer.fates.values().all(|n| *n > 500), "{:?}", answer.fates);
    }
}
