//! NVMe controllers on machines made of plain files, under a kernel that reacts as the real one does.

mod binding;
mod discovery;
mod failures;
mod kernel;
mod lock;
mod machine;
mod refusals;
mod usage;
