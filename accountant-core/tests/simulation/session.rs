//! One run: a world, the kernel that Felix programs for it, an agent that reads it, and the truth beside them.

use crate::agent::{Agent, told};
use crate::fate::{Aim, Plan};
use crate::felix;
use crate::kernel::{Backend, Kernel};
use crate::laws::{
    Expected, Law, Verdict, all_accounted, is_against, is_exact, no_account_exceeds, no_denies,
    no_sum_exceeds, nothing_lost,
};
use crate::programs::{Passed, Programs};
use crate::scenario::{LateDraw, Op, Scenario};
use crate::source::{Late, Source};
use crate::structure::Structure;
use crate::truth::{Book, Truth, text};
use crate::world::{Edit, World};
use accountant_core::attribute::Attribution;
use accountant_core::{ChainName, Counter};
use std::collections::BTreeMap;
use std::time::Duration;

/// How many readings of moving counters the core waits for them to rest.
const PATIENCE: u32 = 6;

/// A packet that comes while counters are read.
#[derive(Clone, Debug)]
pub(crate) struct LatePlan {
    pub(crate) plan: Plan,
    pub(crate) cpu: usize,
    pub(crate) at: i64,
    pub(crate) stride: i64,
}

pub(crate) struct Session {
    pub(crate) world: World,
    pub(crate) kernel: Kernel,
    pub(crate) source: Source,
    pub(crate) programs: Programs,
    pub(crate) agent: Agent,
    pub(crate) truth: Truth,
    structure: Structure,
    aim: Aim,
    /// What is checked.
    laws: Vec<Law>,
    /// No rule was ever rewritten, no chain deleted, no counter wiped.
    pristine: bool,
    /// Whether the agent came later than the first packet.
    late: bool,
    /// Whether it ever was away: it did not hear what programs told last.
    was_away: bool,
    /// Whether every packet must be accounted for.
    exact: bool,
    /// Counters were lost of which no bound is known.
    unbounded_loss: bool,
    /// What can have been lost by rewrites in iptables-legacy.
    lost: Counter,
    /// The part of it since the last reading.
    lost_since: Counter,
    /// How many of its first rules a chain that changed since the last reading has kept.
    kept: BTreeMap<ChainName, usize>,
    decisions_at_reading: Counter,
    /// How many readings running left something unsettled.
    unsettled: u32,
    /// Whether they were so many that the core settled what still moved.
    impatient: bool,
    /// What happened, in words.
    pub(crate) story: Vec<String>,
}

impl Session {
    pub(crate) fn new(backend: Backend, world: World) -> Self {
        let mut session = Self {
            world,
            kernel: Kernel::new(backend),
            source: Source::new(false),
            programs: Programs::default(),
            agent: Agent::new(backend),
            truth: Truth::default(),
            structure: Structure::default(),
            aim: Aim::Anything,
            laws: Law::ALL.to_vec(),
            pristine: true,
            late: false,
            was_away: false,
            exact: true,
            unbounded_loss: false,
            lost: Counter::ZERO,
            lost_since: Counter::ZERO,
            kept: BTreeMap::new(),
            decisions_at_reading: Counter::ZERO,
            unsettled: 0,
            impatient: false,
            story: Vec::new(),
        };
        session.program();
        session
    }

    /// A run of what was drawn, by an agent that is there from the start.
    pub(crate) fn run(scenario: &Scenario) -> Verdict {
        let mut session = Self::new(scenario.backend, scenario.world.clone());
        session.source = Source::new(scenario.may_dip);
        session.aim = scenario.aim;
        session.laws.clone_from(&scenario.laws);
        session.programs.attached = scenario.witnessed;
        session.tell(|session| {
            session.read(&[], false)?;
            if scenario.witnessed {
                // What was counted before the second reading is not told.
                session.read(&[], false)?;
            }
            scenario.ops.iter().try_for_each(|op| session.op(op))?;
            session.finish()
        })
    }

    /// Does something, and tells which law was broken after the story that led to it.
    pub(crate) fn tell(&mut self, what: impl FnOnce(&mut Self) -> Verdict) -> Verdict {
        what(self).map_err(|law| format!("{}\n{law}", self.story.join("\n")))
    }

    pub(crate) fn op(&mut self, op: &Op) -> Verdict {
        if !matches!(op, Op::Send(..) | Op::Read { .. } | Op::Edit(_)) {
            self.story.push(format!("{op:?}"));
        }
        match op {
            Op::Send(draw, times) => {
                let plan = draw.plan(&self.world, self.aim);
                plan.iter().cycle().take(if plan.is_some() { *times } else { 0 }).for_each(|p| self.send(p));
            }
            Op::Read { late, flood } => return self.read(&self.planned(late), *flood),
            Op::Edit(edit) => self.edit(*edit),
            Op::Wipe(nth) => {
                self.kernel.wipe(*nth);
                self.source.dip = 0;
                (self.exact, self.pristine, self.unbounded_loss) = (false, false, true);
                // A counter that is past its old value again when it is read next was never seen to fall.
                self.source.wanted = self.kernel.chains.keys().cloned().collect();
                return self.read_once(&[]).map(drop);
            }
            Op::Dip(readings) => {
                // A first reading in such a moment cannot be told from a table that was just made.
                let legacy = self.kernel.backend.is_legacy() && self.agent.baseline.is_some();
                self.source.dip = if legacy { *readings } else { 0 }
            }
            Op::Lose { noticed } => {
                self.source.lose(*noticed);
                (self.exact, self.unbounded_loss) = (false, true);
            }
            Op::Restart => self.restart(),
            Op::Away => self.leave(),
            Op::Programs(change) => self.programs.change(*change),
        }
        Ok(())
    }

    /// A new agent, that has no reading of its own yet.
    pub(crate) fn restart(&mut self) {
        self.source.forget();
        self.source.dip = 0;
        self.agent = Agent::new(self.kernel.backend);
        self.late = true;
        self.unsettled = 0;
        self.decisions_at_reading = Counter::ZERO;
        self.exact = self.pristine;
        self.unbounded_loss |= !self.pristine;
    }

    /// The agent goes. It comes back for the next reading, with what it knew after the last one.
    fn leave(&mut self) {
        let changed = self.source.leave(&self.kernel);
        self.unbounded_loss |= changed;
        // In iptables-legacy nothing shows that rules stayed.
        self.exact &= !changed && !self.kernel.backend.is_legacy();
        self.was_away = true;
        self.agent.comes_back();
    }

    /// A packet passes while nobody reads.
    pub(crate) fn send(&mut self, plan: &Plan) {
        let late = self.arrive(&LatePlan { plan: plan.clone(), cpu: 0, at: 0, stride: 0 });
        let passed = self.passed(&late);
        for step in &passed.steps {
            self.kernel.count(step, late.cpu, late.packet.size);
        }
        self.programs.see(&passed);
    }

    pub(crate) fn edit(&mut self, edit: Edit) {
        self.world.apply(edit);
        self.program();
    }

    /// Felix makes the kernel what the world wants.
    pub(crate) fn program(&mut self) {
        self.structure.learn(&self.world);
        let native = self.kernel.backend == Backend::Native;
        let commit = self.kernel.commit(felix::chains(&self.world, native));
        self.story.push(format!("{:?} has {}", self.kernel.backend, self.world));
        self.programs.check(&self.kernel);
        // Who only polls cannot know that a new chain has had one version only.
        let changed = commit.added || !commit.retired.is_empty();
        self.exact &= !(changed && self.kernel.backend.is_legacy() && self.source.has_read());
        self.exact &= !(changed && self.source.is_away());
        if commit.retired.is_empty() {
            return;
        }
        self.pristine = false;
        self.exact &= self.source.has_read();
        self.unbounded_loss |= self.source.is_away();
        for (chain, kept) in &commit.kept {
            let least = self.kept.entry(chain.clone()).or_insert(*kept);
            *least = *kept.min(least);
        }
        if self.kernel.backend.is_legacy() {
            self.source.rewritten();
            self.unbounded_loss |= self.came_back();
            let now = self.truth.decisions;
            self.lost_since = Counter {
                packets: now.packets - self.decisions_at_reading.packets,
                bytes: now.bytes - self.decisions_at_reading.bytes,
            };
        } else if self.source.has_read() {
            self.source.notify(commit);
        }
    }

    /// Whether rules were replaced and are the same again, with no reading in between: that shows nowhere.
    fn came_back(&self) -> bool {
        self.kept.iter().any(|(chain, &kept)| {
            let now = self.kernel.chains.get(chain).map_or(&[][..], |live| live.chain.ids());
            self.source.seen(chain).iter().skip(kept).any(|rule| now.iter().skip(kept).any(|now| now == rule))
        })
    }

    /// A packet comes: truth is told at once, counting is for the kernel.
    fn arrive(&mut self, late: &LatePlan) -> Late {
        let LatePlan { plan, cpu, at, stride } = late;
        let fate = plan.fate(&self.world);
        let accepted = self.kernel.walk(&fate.packet).1;
        assert_eq!(accepted, fate.accepted, "the simulated kernel and the world disagree: {fate:?}");
        self.truth.add(&fate);
        let on_its_way = format!("cpu {cpu} at {at} stride {stride}");
        self.story.push(format!("packet of {} bytes, {on_its_way}: {}", plan.size, fate.text()));
        Late { packet: fate.packet, cpu: *cpu, at: *at, stride: *stride }
    }

    fn passed(&self, Late { packet, .. }: &Late) -> Passed {
        let (steps, accepted) = self.kernel.walk(packet);
        Passed { packet: packet.clone(), steps, accepted }
    }

    /// The moment of the next reading just before this rule's counter is read.
    pub(crate) fn before(&self, chain: &ChainName, rule: usize) -> i64 {
        self.source.position(&self.kernel, chain, rule)
    }

    fn planned(&self, late: &[LateDraw]) -> Vec<LatePlan> {
        let plan = |late: &LateDraw| {
            let plan = late.draw.plan(&self.world, self.aim)?;
            Some(LatePlan { plan, cpu: late.cpu, at: late.at, stride: late.stride })
        };
        late.iter().filter_map(plan).collect()
    }

    /// Reads, and up to two times more while this would tell more; packets come during the first reading, in a flood
    /// during each.
    pub(crate) fn read(&mut self, late: &[LatePlan], flood: bool) -> Verdict {
        self.source.now += Duration::from_secs(1);
        let mut unsettled = self.read_once(late)?.unsettled;
        for _ in 0..2 {
            if unsettled {
                unsettled = self.read_once(if flood { late } else { &[] })?.unsettled;
            }
        }
        self.source.dip = 0;
        Ok(())
    }

    pub(crate) fn read_once(&mut self, late: &[LatePlan]) -> Result<Attribution, String> {
        self.source.now += Duration::from_millis(10);
        self.lost += std::mem::take(&mut self.lost_since);
        self.kept.clear();
        let before = self.truth.clone();
        let still = before.decisions == self.decisions_at_reading;
        if self.source.dip == 0 {
            self.decisions_at_reading = before.decisions;
        }
        let late: Vec<_> = late.iter().map(|late| self.arrive(late)).collect();
        // What an agent finds cannot be told from what comes while it looks.
        self.exact &= late.is_empty() || self.agent.baseline.is_some();
        let dips = self.source.dip > 0;
        let passed: Vec<_> = late.iter().map(|late| self.passed(late)).collect();
        let told_before = self.programs.tell();
        let mut snapshot = self.source.read(&mut self.kernel, &late);
        let (slow, swift): (Vec<_>, Vec<_>) = passed.iter().partition(|passed| passed.is_slow());
        swift.into_iter().for_each(|passed| self.programs.see(passed));
        snapshot.verdicts = self.programs.around(told_before);
        slow.into_iter().for_each(|passed| self.programs.see(passed));
        self.programs.install(&self.kernel);
        let attribution = self.agent.take(&snapshot, &mut self.source);
        self.story.push(told(&snapshot, &attribution));
        let rested = self.unsettled == 0;
        self.unsettled = if attribution.unsettled { self.unsettled + 1 } else { 0 };
        self.impatient |= self.unsettled >= PATIENCE;
        // Two readings and no packet since the first of them.
        let rests = still && rested && before.decisions == self.truth.decisions;
        if rests && !dips && !attribution.unsettled && self.agent.baseline.is_none() {
            self.agent.baseline = Some((self.agent.charged.clone(), before));
        }
        self.check()?;
        Ok(attribution)
    }

    fn holds(&self, law: Law) -> bool {
        self.laws.contains(&law)
    }

    fn check(&self) -> Verdict {
        let Agent { charged, baseline, .. } = &self.agent;
        self.agent.check_ledger()?;
        if self.aim == Aim::Accepted && self.holds(Law::NoDenies) {
            no_denies(charged)?;
        }
        let nothing_invented = |charged: &Book, truth: &Book, all| {
            if self.holds(Law::Accounts) {
                no_account_exceeds(charged, truth)?;
            }
            if self.holds(Law::Sums) { no_sum_exceeds(charged, truth, all) } else { Ok(()) }
        };
        nothing_invented(charged, &self.truth.accounts, self.truth.decisions)?;
        let Some((charged_before, truth_before)) = baseline else { return Ok(()) };
        let charged = difference(charged, charged_before);
        let truth = difference(&self.truth.accounts, &truth_before.accounts);
        let all = truth.values().copied().sum();
        nothing_invented(&charged, &truth, all).map_err(|law| format!("since first settled: {law}"))
    }

    /// Traffic stops: everything must come to rest, and the books must be right.
    pub(crate) fn finish(&mut self) -> Verdict {
        self.settle()?;
        let Self { agent, truth, structure, .. } = &*self;
        if self.exact && self.holds(Law::Complete) && self.programs.told_all() && !self.late && !self.was_away
        {
            is_exact(&agent.charged, &truth.accounts)?;
        } else if self.exact && self.holds(Law::Complete) {
            let (impatient, rewritten, late) = (self.impatient, !self.pristine, self.late);
            let expected = Expected { structure, impatient, rewritten, late };
            all_accounted(&agent.charged, truth, &expected)?;
        } else if !self.unbounded_loss && self.kernel.backend.is_legacy() && self.holds(Law::Complete) {
            let open = truth.accounts.iter().filter(|(key, _)| {
                // Where a tier shows nowhere what no policy decided, rewrites can leave open what was passed.
                structure.silent && !self.pristine && is_against(key)
            });
            nothing_lost(&agent.charged, truth, self.lost + open.map(|(_, &amount)| amount).sum())?;
        }
        if self.holds(Law::Bounded) { self.is_bounded() } else { Ok(()) }
    }

    /// Lets everything come to rest where counters were not made by packets.
    pub(crate) fn settle_unchecked(&mut self) {
        for _ in 0..4 {
            self.source.now += Duration::from_secs(1);
            let snapshot = self.source.read(&mut self.kernel, &[]);
            let attribution = self.agent.take(&snapshot, &mut self.source);
            self.story.push(told(&snapshot, &attribution));
        }
    }

    pub(crate) fn settle(&mut self) -> Verdict {
        self.source.now += Duration::from_secs(1);
        self.source.dip = 0;
        // Settled twice running: the first can be the end of its patience with what moved before.
        let mut settled = 0;
        for _ in 0..14 {
            settled = if self.read_once(&[])?.unsettled { 0 } else { settled + 1 };
            if settled == 2 {
                break;
            }
            self.source.now += Duration::from_millis(200);
        }
        if !self.holds(Law::Rest) {
            return Ok(());
        }
        if settled < 2 {
            return Err("rest does not settle it".into());
        }
        let idle = self.read_once(&[])?;
        match idle.postings.iter().find(|posting| !posting.amount.is_zero()) {
            Some(posting) => Err(format!("posted at rest: {posting:?}")),
            None if idle.unsettled => Err("unsettled again at rest".into()),
            None => Ok(()),
        }
    }

    /// The agent remembers no more accounts than one that starts now.
    fn is_bounded(&mut self) -> Verdict {
        let accounts = self.agent.accounts();
        self.source.forget();
        let mut fresh = Agent::new(self.kernel.backend);
        for _ in 0..3 {
            let snapshot = self.source.read(&mut self.kernel, &[]);
            fresh.take(&snapshot, &mut self.source);
        }
        let live = fresh.accounts();
        match accounts.iter().find(|key| !live.contains(key)) {
            Some(key) => Err(format!("{} is remembered", text(key))),
            None if accounts.len() > live.len() => Err("accounts are remembered twice".into()),
            None => Ok(()),
        }
    }
}

/// What is in a book beyond what was in it before.
fn difference(book: &Book, before: &Book) -> Book {
    let since = |(key, now): (&_, &Counter)| {
        let before = before.get(key).copied().unwrap_or_default();
        (Clone::clone(key), now.since(before))
    };
    book.iter().map(since).collect()
}
