//! What the kernel says about this process's own addresses: which file is mapped where.
//!
//! One address costs one ioctl (PROCMAP_QUERY, Linux 6.11) or, on older kernels, a
//! read of `/proc/self/maps`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Mutex;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// A stretch of addresses with one mapping behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vma {
    /// The addresses.
    pub addresses: Range<u64>,
    /// Mapped with PROT_READ.
    pub readable: bool,
    /// Mapped with PROT_WRITE.
    pub writable: bool,
    /// MAP_SHARED; else MAP_PRIVATE.
    pub shared: bool,
    /// Offset in the file of the first address, bytes.
    pub offset: u64,
    /// Device number of the file, as in `st_dev`; 0 when there is no file.
    pub device: u64,
    /// Inode number of the file; 0 when there is no file.
    pub inode: u64,
    /// What `maps` calls it: the path of the file when it was opened, `[stack]`, `[heap]`; not told by [`AddressMap::at`].
    pub name: Option<String>,
}

/// The address map of the process that opened it.
#[derive(Debug)]
pub struct AddressMap {
    file: Mutex<File>,
}

/// struct procmap_query, include/uapi/linux/fs.h.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable)]
struct Query {
    size: u64,
    flags: u64,
    address: u64,
    start: u64,
    end: u64,
    vma_flags: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    major: u32,
    minor: u32,
    name_size: u32,
    build_id_size: u32,
    name: u64,
    build_id: u64,
}

/// PROCMAP_QUERY: `_IOWR('f', 17, struct procmap_query)`.
const PROCMAP_QUERY: u32 = (3 << 30) | ((size_of::<Query>() as u32) << 16) | ((b'f' as u32) << 8) | 17;
const READABLE: u64 = 1;
const WRITABLE: u64 = 2;
const SHARED: u64 = 8;

impl AddressMap {
    /// The caller's.
    ///
    /// # Errors
    /// What open(2) answers.
    pub fn open() -> io::Result<AddressMap> {
        Ok(AddressMap { file: Mutex::new(File::open("/proc/self/maps")?) })
    }

    /// What is mapped at an address, if anything.
    ///
    /// # Errors
    /// What ioctl(2) or read(2) answer.
    pub fn at(&self, address: u64) -> io::Result<Option<Vma>> {
        match self.ask(address) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
                Ok(self.all()?.into_iter().find(|vma| vma.addresses.contains(&address)))
            }
            answer => answer,
        }
    }

    /// Everything that is mapped, by rising address. Not one moment's picture if other threads map meanwhile.
    ///
    /// # Errors
    /// What read(2) answers.
    pub fn all(&self) -> io::Result<Vec<Vma>> {
        let mut file = self.file();
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut text)?;
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| parse(&String::from_utf8_lossy(line)).ok_or_else(|| io::Error::other("unknown line in maps"))).collect()
    }

    fn ask(&self, address: u64) -> io::Result<Option<Vma>> {
        let mut query = Query::new_zeroed();
        query.size = size_of::<Query>() as u64;
        query.address = address;
        match crate::ioctl(&*self.file(), PROCMAP_QUERY, &mut query) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        }
        let has = |flag| query.vma_flags & flag != 0;
        Ok(Some(Vma {
            addresses: query.start..query.end,
            readable: has(READABLE),
            writable: has(WRITABLE),
            shared: has(SHARED),
            offset: query.offset,
            device: libc::makedev(query.major, query.minor),
            inode: query.inode,
            name: None,
        }))
    }

    fn file(&self) -> std::sync::MutexGuard<'_, File> {
        // A panic elsewhere leaves only the read position behind, which every use sets.
        self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// One line of maps: `start-end perms offset major:minor inode [name]`.
fn parse(line: &str) -> Option<Vma> {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    // Names contain spaces, so they are what remains.
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let mut access = fields.next()?.chars();
    let mut has = |letter| Some(access.next()? == letter);
    let (readable, writable, _executable, shared) = (has('r')?, has('w')?, has('x')?, has('s')?);
    let offset = hex(fields.next()?)?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let device = libc::makedev(u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode = fields.next()?.parse().ok()?;
    let name = fields.next().map(str::trim_start).filter(|name| !name.is_empty()).map(str::to_owned);
    Some(Vma { addresses: hex(start)?..hex(end)?, readable, writable, shared, offset, device, inode, name })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::{CpuMapping, Sharing, private_memfd};

    #[test]
    fn a_line_is_read() {
        let line = "7f00-7f0100 rw-s 00002000 08:1f 77                       /a b\\012c";
        let vma = parse(line).expect("it is valid");
        assert_eq!((vma.addresses, vma.offset, vma.inode), (0x7f00..0x7f_0100, 0x2000, 77));
        assert_eq!(vma.device, libc::makedev(8, 0x1f));
        assert!(vma.readable && vma.writable && vma.shared);
        assert_eq!(vma.name.as_deref(), Some("/a b\\012c"));
        assert!(parse("nonsense").is_none() && parse("").is_none());
    }

    #[test]
    fn one_address_and_the_whole_list_agree() {
        let file = private_memfd("vma", 4 * 4096).expect("memfd");
        let mapping = CpuMapping::map(&file, 4096, 8192, Sharing::Shared, false).expect("map");
        let map = AddressMap::open().expect("procfs");
        let address = mapping.address() as u64;
        let vma = map.at(address + 5000).expect("ask").expect("mapped");
        let metadata = file.metadata().expect("stat");
        assert_eq!((vma.device, vma.inode), (metadata.dev(), metadata.ino()));
        assert_eq!((vma.addresses.start, vma.offset), (address, 4096));
        assert!(vma.readable && !vma.writable && vma.shared);
        let listed = map.all().expect("read");
        assert!(listed.iter().any(|other| Vma { name: None, ..other.clone() } == vma));
        assert!(listed.iter().any(|vma| vma.name.as_deref() == Some("[stack]")));
        drop(mapping);
        assert!(map.at(0).expect("ask").is_none(), "nothing is mapped at 0");
    }
}
