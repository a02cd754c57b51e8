mod mapping;
mod model;
mod pinned;
mod pool;
mod races;
mod world;
