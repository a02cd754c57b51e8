mod coherence;
mod exports;
mod lifetimes;
mod mapping;
mod real_aperture;
mod revocation;
mod scale;
mod world;
