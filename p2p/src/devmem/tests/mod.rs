mod mapping;
mod model;
mod pool;
mod races;
mod world;
