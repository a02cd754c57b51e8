//! The real driver, through `cudarc`: the one file of this crate with unsafe code.
//!
//! Invariants that the blocks rely on: objects of the driver are made here only, for `CudaGpu::context`, and have no copies
//! outside; every call is made with that context current on the calling thread; ranges are checked here; and all work
//! goes to the one default stream, so that copies come after kernels.

use std::ffi::{CStr, CString, c_void};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};

use crate::{DriverError, Gpu, HostMemory, OpenError};

/// The kernel, which the driver translates for its GPU.
const COPY_PTX: &str = concat!(include_str!("copy.ptx"), "\0");
const COPY_NAME: &CStr = c"peerfs_copy";
/// Oldest driver that has every call which is made, as cuDriverGetVersion counts.
const OLDEST_VERSION: i32 = 11040;
const THREADS_PER_BLOCK: u32 = 256;
/// Enough to fill the bus from any GPU.
const BLOCKS_MAX: usize = 1024;
/// What one thread moves at once.
const VECTOR_BYTES: usize = 16;

/// A GPU and its primary context.
pub struct CudaGpu {
    context: Arc<CudaContext>,
    module: sys::CUmodule,
    copy: sys::CUfunction,
    read_only: bool,
    info: GpuInfo,
}

// SAFETY: the driver's handles belong to the process; every call is made with the context current on its thread.
unsafe impl Send for CudaGpu {}
// SAFETY: as above; the driver's calls may be made by several threads at once.
unsafe impl Sync for CudaGpu {}

/// What a GPU is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuInfo {
    /// The manufacturer's name.
    pub name: String,
    /// Where it is on the bus, as `lspci -D` prints it.
    pub pci_address: String,
}

impl CudaGpu {
    /// Loads the driver, and opens the GPU with this number, as CUDA counts.
    ///
    /// # Errors
    /// There is no driver, it is too old, or there is no such GPU.
    pub fn open(ordinal: u32) -> Result<CudaGpu, OpenError> {
        // SAFETY: loads the library of the installed driver, whose initialisers need nothing.
        if !unsafe { sys::is_culib_present() } {
            return Err(OpenError::NoLibrary);
        }
        let version = driver_version().map_err(|source| OpenError::Driver { ordinal, source })?;
        if version < OLDEST_VERSION {
            return Err(OpenError::TooOld { version });
        }
        let count = devices().map_err(|source| OpenError::Driver { ordinal, source })?;
        if ordinal >= count {
            return Err(OpenError::NoDevice { ordinal, count });
        }
        CudaGpu::prepare(ordinal).map_err(|source| OpenError::Driver { ordinal, source })
    }

    fn prepare(ordinal: u32) -> Result<CudaGpu, DriverError> {
        use sys::CUdevice_attribute as Attribute;
        let context = CudaContext::new(ordinal as usize).map_err(failed("cuDevicePrimaryCtxRetain"))?;
        let attribute = |which| context.attribute(which).map_err(failed("cuDeviceGetAttribute"));
        let read_only = attribute(Attribute::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED)? != 0;
        let domain = attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?;
        let bus = attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?;
        let device = attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?;
        let name = context.name().map_err(failed("cuDeviceGetName"))?;
        let info = GpuInfo { name, pci_address: format!("{domain:04x}:{bus:02x}:{device:02x}.0") };
        // SAFETY: the context is current on this thread, and the text ends with NUL.
        let module = unsafe { result::module::load_data(COPY_PTX.as_ptr().cast()) }.map_err(failed("cuModuleLoadData"))?;
        // SAFETY: the module was loaded just now. If this fails it stays until the context ends.
        let copy = unsafe { result::module::get_function(module, CString::from(COPY_NAME)) };
        let copy = copy.map_err(failed("cuModuleGetFunction"))?;
        Ok(CudaGpu { context, module, copy, read_only, info })
    }

    /// What it is.
    pub fn info(&self) -> &GpuInfo {
        &self.info
    }

    fn enter(&self) -> Result<(), DriverError> {
        self.context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))
    }

    /// Starts the kernel. The ranges were checked, and live until the stream was waited for: see [`Gpu::unregister`] and
    /// the `Drop` of memory.
    fn launch(&self, to: sys::CUdeviceptr, from: sys::CUdeviceptr, length: usize) -> Result<(), DriverError> {
        if length == 0 {
            return Ok(());
        }
        self.enter()?;
        let threads = THREADS_PER_BLOCK as usize;
        let blocks = length.div_ceil(VECTOR_BYTES).div_ceil(threads).min(BLOCKS_MAX) as u32;
        let (mut to, mut from, mut length) = (to, from, length as u64);
        let mut arguments: [*mut c_void; 3] = [(&raw mut to).cast(), (&raw mut from).cast(), (&raw mut length).cast()];
        let grid = (blocks, 1, 1);
        // SAFETY: the kernel takes three 64-bit numbers, which the call copies; it touches `length` bytes at both places only.
        unsafe { result::launch_kernel(self.copy, grid, (THREADS_PER_BLOCK, 1, 1), 0, result::stream::null(), &mut arguments) }
            .map_err(failed("cuLaunchKernel"))
    }
}

impl Drop for CudaGpu {
    fn drop(&mut self) {
        if self.enter().is_ok() {
            // SAFETY: it was loaded in this context, once, and nobody else has it. A failure means that it has gone already.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

/// Pages that the driver holds.
pub struct Pages {
    host: usize,
    device: sys::CUdeviceptr,
    length: usize,
    writable: bool,
}

/// Memory of the GPU.
pub struct Memory {
    context: Arc<CudaContext>,
    device: sys::CUdeviceptr,
    length: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: it was allocated in this context, once. The call waits for kernels that use it; nothing is left to do
            // if it fails.
            let _ = unsafe { result::free_sync(self.device) };
        }
    }
}

/// Page-locked memory of this process.
pub struct Staging {
    context: Arc<CudaContext>,
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: it is the owner's alone, like a Box: the GPU reaches it only in calls that have a reference to it.
unsafe impl Send for Staging {}
// SAFETY: as above.
unsafe impl Sync for Staging {}

impl Deref for Staging {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `length` bytes, initialised at the start, that are ours alone until they are dropped.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for Staging {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: it was allocated in this context, once; nothing is left to do if it fails.
            let _ = unsafe { result::free_host(self.start.as_ptr().cast()) };
        }
    }
}

impl Gpu for CudaGpu {
    type Registration = Pages;
    type Memory = Memory;
    type Staging = Staging;

    fn registers_read_only(&self) -> bool {
        self.read_only
    }

    fn register(&self, memory: HostMemory<'_>) -> Result<Pages, DriverError> {
        self.enter()?;
        let (start, length) = (memory.address() as *mut c_void, memory.length());
        let flags = sys::CU_MEMHOSTREGISTER_DEVICEMAP
            | sys::CU_MEMHOSTREGISTER_PORTABLE
            | if memory.writable() { 0 } else { sys::CU_MEMHOSTREGISTER_READ_ONLY };
        // SAFETY: whole pages that are mapped, to which nothing in the program has a reference. The driver holds the pages
        // themselves, so that they can be unmapped meanwhile.
        let registered = unsafe { sys::cuMemHostRegister_v2(start, length, flags) };
        registered.result().map_err(failed("cuMemHostRegister"))?;
        let mut pages = Pages { host: memory.address(), device: 0, length, writable: memory.writable() };
        // SAFETY: the pages are registered, and `device` outlives the call.
        let mapped = unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut pages.device, start, 0) };
        match mapped.result().map_err(failed("cuMemHostGetDevicePointer")) {
            Ok(()) => Ok(pages),
            Err(error) => {
                self.unregister(pages)?;
                Err(error)
            }
        }
    }

    fn unregister(&self, registration: Pages) -> Result<(), DriverError> {
        self.enter()?;
        // SAFETY: it was registered in this context, once. The caller has waited for the kernels that use it; one that had
        // not ended would fault on the GPU, and nothing else.
        let released = unsafe { sys::cuMemHostUnregister(registration.host as *mut c_void) };
        released.result().map_err(failed("cuMemHostUnregister"))
    }

    fn allocate(&self, length: usize) -> Result<Memory, DriverError> {
        self.enter()?;
        // SAFETY: it is zeroed before anything is read.
        let device = unsafe { result::malloc_sync(length) }.map_err(failed("cuMemAlloc"))?;
        let memory = Memory { context: Arc::clone(&self.context), device, length };
        // SAFETY: `length` bytes were allocated there just now.
        unsafe { result::memset_d8_sync(device, 0, length) }.map_err(failed("cuMemsetD8"))?;
        Ok(memory)
    }

    fn stage(&self, length: usize) -> Result<Staging, DriverError> {
        self.enter()?;
        // SAFETY: it is zeroed before anything is read.
        let start = unsafe { result::malloc_host(length, 0) }.map_err(failed("cuMemHostAlloc"))?;
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(|| refused("cuMemHostAlloc", "no address"))?;
        // SAFETY: `length` bytes were allocated there just now, for us alone.
        unsafe { start.as_ptr().write_bytes(0, length) };
        Ok(Staging { context: Arc::clone(&self.context), start, length })
    }

    fn load(&self, pages: &Pages, from: usize, memory: &Memory, to: usize, length: usize) -> Result<(), DriverError> {
        let (from, to) = (place(pages.device, pages.length, from, length)?, place(memory.device, memory.length, to, length)?);
        self.launch(to, from, length)
    }

    fn store(&self, memory: &Memory, from: usize, pages: &Pages, to: usize, length: usize) -> Result<(), DriverError> {
        if !pages.writable {
            return Err(refused("cuLaunchKernel", "the pages are registered for reading only"));
        }
        let (from, to) = (place(memory.device, memory.length, from, length)?, place(pages.device, pages.length, to, length)?);
        self.launch(to, from, length)
    }

    fn upload(&self, source: &[u8], memory: &Memory, to: usize) -> Result<(), DriverError> {
        let to = place(memory.device, memory.length, to, source.len())?;
        self.enter()?;
        // SAFETY: the range was checked, and the call returns when the copy has ended.
        unsafe { result::memcpy_htod_sync(to, source) }.map_err(failed("cuMemcpyHtoD"))
    }

    fn download(&self, memory: &Memory, from: usize, target: &mut [u8]) -> Result<(), DriverError> {
        let from = place(memory.device, memory.length, from, target.len())?;
        self.enter()?;
        // SAFETY: as in `upload`.
        unsafe { result::memcpy_dtoh_sync(target, from) }.map_err(failed("cuMemcpyDtoH"))
    }

    fn synchronize(&self) -> Result<(), DriverError> {
        self.enter()?;
        // SAFETY: the default stream of the current context always exists.
        unsafe { result::stream::synchronize(result::stream::null()) }.map_err(failed("cuStreamSynchronize"))
    }
}

/// Where `offset` is, if `length` bytes from there on are inside.
fn place(start: sys::CUdeviceptr, size: usize, offset: usize, length: usize) -> Result<sys::CUdeviceptr, DriverError> {
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(start + offset as u64),
        _ => Err(refused("a copy", "it leaves its memory")),
    }
}

fn driver_version() -> Result<i32, DriverError> {
    let mut version = 0;
    // SAFETY: the library is there, and the call needs no initialisation.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(failed("cuDriverGetVersion"))?;
    Ok(version)
}

/// How many GPUs there are; cuInit answers an error for none.
fn devices() -> Result<u32, DriverError> {
    match result::init() {
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => return Ok(0),
        other => other.map_err(failed("cuInit"))?,
    }
    let count = result::device::get_count().map_err(failed("cuDeviceGetCount"))?;
    Ok(u32::try_from(count).unwrap_or(0))
}

/// What a call of the driver answered, in words.
fn failed(call: &'static str) -> impl Fn(result::DriverError) -> DriverError {
    move |error| {
        let text = error.error_string().map_or("no explanation".into(), CStr::to_string_lossy);
        DriverError { call, answer: format!("{:?} ({text})", error.0) }
    }
}

/// What is refused before the driver is asked.
fn refused(call: &'static str, why: &str) -> DriverError {
    DriverError { call, answer: why.to_owned() }
}
