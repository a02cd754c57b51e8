//! Interrupts of a device and messages of its bus driver, as eventfds.

use std::fs::File;
use std::io;

use crate::interrupt::Interrupt;

use super::{abi, ioctl};

/// How many interrupts the index has.
pub(super) fn count(device: &File, index: u32) -> io::Result<u32> {
    ioctl::irq_info(device, index).map(|info| info.count)
}

/// Makes the first `count` interrupts of an index notify new eventfds. What there was has to be switched off before,
/// unless there is only one.
pub(super) fn enable(device: &File, index: u32, count: u32) -> io::Result<Vec<Interrupt>> {
    let interrupts = (0..count).map(|_| Interrupt::new()).collect::<io::Result<Vec<_>>>()?;
    let descriptors: Vec<i32> = interrupts.iter().map(Interrupt::raw_fd).collect();
    let flags = abi::IRQ_SET_DATA_EVENTFD | abi::IRQ_SET_ACTION_TRIGGER;
    ioctl::set_irqs(device, abi::IrqSet { flags, index, count, ..Default::default() }, &descriptors)?;
    Ok(interrupts)
}

/// Switches an index off.
pub(super) fn disable(device: &File, index: u32) -> io::Result<()> {
    let flags = abi::IRQ_SET_DATA_NONE | abi::IRQ_SET_ACTION_TRIGGER;
    ioctl::set_irqs(device, abi::IrqSet { flags, index, ..Default::default() }, &[])
}

/// Has the kernel act as if the device had sent an interrupt.
pub(super) fn simulate(device: &File, index: u32, number: u32) -> io::Result<()> {
    let flags = abi::IRQ_SET_DATA_NONE | abi::IRQ_SET_ACTION_TRIGGER;
    ioctl::set_irqs(device, abi::IrqSet { flags, index, start: number, count: 1, ..Default::default() }, &[])
}
