//! The rules of the delivery protocol by name. All of them always hold; with the feature `ablation` a simulation can
//! take one out to prove that it would be missed.

/// A rule of `docs/delivery.md`.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    Pred,
    AfterCut,
    Unsent,
    OneSeq,
    Ack,
    Names,
    KgNum,
    Retain,
    Retire,
    RetNum,
    Bound,
    Inherit,
    MergeMin,
    Roots,
    Join,
    RecWm,
    Horizon,
    Assigned,
    Idle,
    RaiseLog,
    Part,
    Lamport,
    DSnap,
    Drain,
    // Wrong variants that the simulation has to catch, beside the rules that the design names.
    Fence,
    SameBytes,
    SeenAbove,
    OwnWatermark,
    Stored,
    Named,
    Fresh,
    Waits,
    Marks,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Rule; 33] = {
        use Rule::*;
        [
            Pred,
            AfterCut,
            Unsent,
            OneSeq,
            Ack,
            Names,
            KgNum,
            Retain,
            Retire,
            RetNum,
            Bound,
            Inherit,
            MergeMin,
            Roots,
            Join,
            RecWm,
            Horizon,
            Assigned,
            Idle,
            RaiseLog,
            Part,
            Lamport,
            DSnap,
            Drain,
            Fence,
            SameBytes,
            SeenAbove,
            OwnWatermark,
            Stored,
            Named,
            Fresh,
            Waits,
            Marks,
        ]
    };
}

/// Which rules hold: all, but in a simulation that takes one out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    #[cfg(feature = "ablation")]
    without: Option<Rule>,
}

impl Rules {
    /// All rules hold.
    pub const fn all() -> Self {
        Self {
            #[cfg(feature = "ablation")]
            without: None,
        }
    }

    /// All rules but one hold.
    #[cfg(feature = "ablation")]
    pub const fn without(rule: Rule) -> Self {
        Self { without: Some(rule) }
    }

    /// Whether `rule` holds.
    #[cfg(feature = "ablation")]
    pub fn hold(self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// Whether `rule` holds: it does.
    #[cfg(not(feature = "ablation"))]
    pub const fn hold(self, _rule: Rule) -> bool {
        true
    }
}
