//! What kind of controller is emulated.

/// Who processes commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processing {
    /// Whoever rings the doorbell, in order.
    Inline,
    /// A thread of the controller, in an order that the seed decides.
    Thread,
}

/// What becomes of data that the controller may not reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocked {
    /// The command fails with Data Transfer Error.
    Error,
    /// The command succeeds, having moved zeros or nothing: what QEMU's controller does behind its IOMMU.
    Silent,
}

/// A controller and its single namespace, well-behaved unless told otherwise. May change while it runs
/// ([`crate::EmulatedController::change`]).
#[derive(Debug, Clone)]
pub struct Profile {
    /// Decides every choice that is left to chance.
    pub seed: u64,
    /// Who processes commands.
    pub processing: Processing,
    /// All of CAP, instead of what follows from the fields below.
    pub cap: Option<u64>,
    /// Entries of a queue (CAP.MQES + 1).
    pub entries: u32,
    /// CAP.TO, in units of 500 ms.
    pub ready_timeout: u8,
    /// CAP.DSTRD: doorbells are 4 << this apart.
    pub stride_power: u8,
    /// Length of BAR 0, bytes.
    pub registers_length: u64,
    /// I/O queue pairs granted.
    pub queues: u16,
    /// Interrupt vectors.
    pub vectors: u16,
    /// MDTS.
    pub max_transfer: u8,
    /// Serial number, at most 20 characters.
    pub serial: String,
    /// Logical blocks of the namespace; 0: inactive.
    pub blocks: u64,
    /// Size of a logical block as a power of two.
    pub block_power: u8,
    /// Metadata bytes of a logical block.
    pub metadata_bytes: u16,
    /// A volatile write cache.
    pub write_cache: bool,
    /// The Write Zeroes command.
    pub write_zeroes: bool,
    /// The Dataset Management command.
    pub dataset_management: bool,
    /// Controller Memory Buffer in BAR 2, bytes, a multiple of 4096; 0: none.
    pub cmb_bytes: u64,
    /// Persistent Memory Region in BAR 4, bytes; 0: none.
    pub pmr_bytes: u64,
    /// What becomes of data that the controller may not reach.
    pub blocked: Blocked,
    /// CSTS.RDY never follows CC.EN.
    pub never_ready: bool,
    /// CC.EN = 0 has no effect: it goes on processing until the function is reset.
    pub never_stops: bool,
    /// A reset of the function has no effect.
    pub reset_fails: bool,
    /// No base address of the memory buffer is accepted.
    pub rejects_cmb_base: bool,
    /// Completions raise no interrupts.
    pub mute: bool,
    /// Every doorbell write raises every interrupt.
    pub spurious_interrupts: bool,
    /// Creating an I/O queue fails.
    pub refuses_queues: bool,
    /// One in so many register reads answers noise; 0: none.
    pub noisy_reads: u64,
    /// It is pulled out after so many more accesses to registers.
    pub accesses_left: Option<u64>,
}

impl Default for Profile {
    fn default() -> Self {
        Profile {
            seed: 1,
            processing: Processing::Thread,
            cap: None,
            entries: 256,
            ready_timeout: 2,
            stride_power: 0,
            registers_length: 16 << 10,
            queues: 8,
            vectors: 8,
            max_transfer: 7,
            serial: "EMULATED1".into(),
            blocks: 16 << 10,
            block_power: 12,
            metadata_bytes: 0,
            write_cache: true,
            write_zeroes: true,
            dataset_management: true,
            cmb_bytes: 0,
            pmr_bytes: 0,
            blocked: Blocked::Error,
            never_ready: false,
            never_stops: false,
            reset_fails: false,
            rejects_cmb_base: false,
            mute: false,
            spurious_interrupts: false,
            refuses_queues: false,
            noisy_reads: 0,
            accesses_left: None,
        }
    }
}
