//! What a thread costs.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// Time of processors, and what interrupted it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// In programs.
    pub user: Duration,
    /// In the kernel.
    pub system: Duration,
    /// Switches to other threads, wanted or not.
    pub switches: u64,
    /// Page faults that needed a device.
    pub major_faults: u64,
    /// Page faults that did not.
    pub minor_faults: u64,
}

impl Usage {
    /// What the calling thread has used so far; nothing where the system does not tell.
    pub fn of_this_thread() -> Usage {
        let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) else { return Usage::default() };
        let switches = usage.voluntary_context_switches() + usage.involuntary_context_switches();
        Usage {
            user: duration(usage.user_time()),
            system: duration(usage.system_time()),
            switches: switches.unsigned_abs(),
            major_faults: usage.major_page_faults().unsigned_abs(),
            minor_faults: usage.minor_page_faults().unsigned_abs(),
        }
    }

    /// What came after an earlier look.
    pub fn since(self, before: Usage) -> Usage {
        Usage {
            user: self.user.saturating_sub(before.user),
            system: self.system.saturating_sub(before.system),
            switches: self.switches.saturating_sub(before.switches),
            major_faults: self.major_faults.saturating_sub(before.major_faults),
            minor_faults: self.minor_faults.saturating_sub(before.minor_faults),
        }
    }

    /// Adds another thread's.
    pub fn add(&mut self, other: &Usage) {
        self.user += other.user;
        self.system += other.system;
        self.switches += other.switches;
        self.major_faults += other.major_faults;
        self.minor_faults += other.minor_faults;
    }
}

fn duration(time: TimeVal) -> Duration {
    Duration::from_micros(time.tv_sec().unsigned_abs() * 1_000_000 + time.tv_usec().unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_is_used_shows() {
        let before = Usage::of_this_thread();
        let mut sum = 0_u64;
        while Usage::of_this_thread().since(before).user + Usage::of_this_thread().since(before).system < Duration::from_millis(1)
        {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let mut all = Usage::of_this_thread().since(before);
        let once = all.user + all.system;
        all.add(&all.clone());
        assert_eq!(all.user + all.system, 2 * once);
    }
}
