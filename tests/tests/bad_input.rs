//! Garbage to everything that takes input: see `torture::bad_input`.

use anyhow::Result;
use peerfs_tests::{seed, torture::bad_input};

#[test]
fn ioctls_survive_garbage() -> Result<()> {
    bad_input::ioctls(seed(1), 3000)
}

#[test]
fn the_grant_socket_survives_garbage() -> Result<()> {
    bad_input::sockets(seed(1), 400)
}

#[test]
fn damaged_images_answer_a_clear_error() -> Result<()> {
    bad_input::images(seed(1), 12)
}

#[test]
fn bad_mount_points_and_devices_answer_a_clear_error() -> Result<()> {
    bad_input::mountpoints()
}

#[test]
fn a_full_device_loses_nothing() -> Result<()> {
    bad_input::full_device(seed(1))
}

#[test]
fn what_statfs_promises_can_be_had() -> Result<()> {
    bad_input::exact_room()
}

#[test]
fn a_device_full_of_metadata_loses_nothing() -> Result<()> {
    bad_input::full_of_metadata()
}
