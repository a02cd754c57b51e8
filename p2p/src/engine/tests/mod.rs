#[cfg(not(shuttle))]
mod coherence;
#[cfg(not(shuttle))]
mod exports;
#[cfg(not(shuttle))]
mod lifetimes;
#[cfg(not(shuttle))]
mod mapping;
#[cfg(not(shuttle))]
mod pins;
#[cfg(not(shuttle))]
mod real_aperture;
#[cfg(not(shuttle))]
mod revocation;
#[cfg(not(shuttle))]
mod scale;
#[cfg(shuttle)]
mod schedules;
#[cfg(not(shuttle))]
mod topology;
mod world;
