//! Events of the block device: the device invalidates, too.

use std::sync::Arc;

use peerfs_abi::Trigger;
use peerfs_blockdev::{BlockDevice, DeviceEvent};

use super::Engine;
use super::revoke::Batch;
use crate::sync::{lock, mpsc, thread};
use crate::types::{ExportId, Range};

impl Engine {
    /// Reacts to the events of the device of files from now on: maps are refused at once, revocation runs on a thread of
    /// its own, which ends with the device or the engine.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn subscribe(self: &Arc<Self>, device: &dyn BlockDevice) -> std::io::Result<()> {
        self.subscribe_export(ExportId::Files, device)
    }

    pub(super) fn subscribe_export(self: &Arc<Self>, export: ExportId, device: &dyn BlockDevice) -> std::io::Result<()> {
        let (sender, receiver) = mpsc::channel::<DeviceEvent>();
        let weak = Arc::downgrade(self);
        thread::Builder::new().name("peerfs-devevents".into()).spawn(move || {
            for event in receiver {
                match weak.upgrade() {
                    Some(engine) => engine.revoke_for_event(export, &event),
                    None => return,
                }
            }
        })?;
        let weak = Arc::downgrade(self);
        device.subscribe(Arc::new(move |event| {
            if let Some(engine) = weak.upgrade() {
                engine.exports[export.index()].device.note(&event);
                // A failed send means that the engine is going away.
                let _ = sender.send(event);
            }
        }));
        Ok(())
    }

    /// Refuses new maps of what the event affects, and revokes the live ones. Waits as every revocation.
    pub fn device_event(&self, export: ExportId, event: &DeviceEvent) {
        self.exports[export.index()].device.note(event);
        self.revoke_for_event(export, event);
    }

    /// The device works again: forgets resets and media errors.
    pub fn clear_device_events(&self, export: ExportId) {
        self.exports[export.index()].device.clear();
    }

    fn revoke_for_event(&self, export: ExportId, event: &DeviceEvent) {
        match event {
            DeviceEvent::Reset | DeviceEvent::Removed => {
                self.revoke_objects(self.objects_of(export), Range::ALL, Trigger::DeviceEvent);
            }
            DeviceEvent::Recovered => {
                self.revoke_objects(self.objects_of(export), Range::ALL, Trigger::DeviceEvent);
                self.exports[export.index()].device.revoked_after_recovery();
            }
            DeviceEvent::MediaError { offset, length } => {
                let mut batch = Batch::new(&*self.clock);
                for key in self.exports[export.index()].reverse.affected(Range::new(*offset, *length)) {
                    let Some(object) = self.object_of(key.object) else {
                        continue;
                    };
                    let mut state = lock(&object.state);
                    if state.same(key.number, key.id).is_some() {
                        self.seize(&object, &mut state, key.number, Trigger::DeviceEvent, &mut batch);
                    }
                }
                self.carry_out(batch, Trigger::DeviceEvent);
            }
        }
    }
}
