//! Kernel modules with all that they depend on, read from the modules themselves: the package has no modules.dep.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::command::output;

/// What a guest's modprobe may be asked for. What a kernel has built in needs no module.
pub const WANTED: [&str; 10] =
    ["crc32c_generic", "ext4", "vfio-pci", "vfio_iommu_type1", "nvme", "nvmet-tcp", "nvme-tcp", "nvme-fabrics", "vgem", "vivid"];

/// A module to be put into the guest.
pub struct Module {
    /// File name with `.ko`.
    pub file: String,
    /// The ELF file, decompressed.
    pub content: Vec<u8>,
    /// File names of those it needs directly.
    pub needs: Vec<String>,
}

/// The wanted modules and those that they need.
///
/// # Errors
/// When one cannot be read or decompressed.
pub fn collect(directory: &Path) -> Result<Vec<Module>> {
    let mut paths = BTreeMap::new();
    find(&directory.join("kernel"), &mut paths)?;
    let mut open: Vec<String> = WANTED.map(name_of).into();
    let mut found = BTreeMap::new();
    while let Some(name) = open.pop() {
        let Some(path) = paths.get(&name) else { continue };
        if found.contains_key(&name) {
            continue;
        }
        let content = read(path)?;
        let needs = depends(&content);
        open.extend(needs.iter().cloned());
        let file_of = |name: &String| Some(file_name(paths.get(name)?));
        let needs = needs.iter().filter_map(file_of).collect();
        found.insert(name, Module { file: file_name(path), content, needs });
    }
    Ok(found.into_values().collect())
}

/// The text of modules.dep: each module with everything that it needs, the innermost last.
pub fn dependencies(modules: &[Module]) -> String {
    let by_file: BTreeMap<&str, &Module> = modules.iter().map(|module| (module.file.as_str(), module)).collect();
    let mut text = String::new();
    for module in modules {
        let mut all: Vec<&str> = Vec::new();
        close(&by_file, module, &mut all);
        all.reverse();
        text.push_str(&format!("{}: {}\n", module.file, all.join(" ")));
    }
    text
}

/// Appends what a module needs, innermost first.
fn close<'a>(modules: &BTreeMap<&'a str, &'a Module>, module: &'a Module, all: &mut Vec<&'a str>) {
    for need in &module.needs {
        if let Some(inner) = modules.get(need.as_str()) {
            close(modules, inner, all);
        }
        if !all.contains(&need.as_str()) {
            all.push(need);
        }
    }
}

fn find(directory: &Path, paths: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, paths)?;
        } else if path.to_string_lossy().contains(".ko") {
            paths.insert(name_of(&file_name(&path)), path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => output(Command::new("xz").arg("-dc").arg(path), "xz-utils"),
        Some("zst") => output(Command::new("zstd").arg("-qdc").arg(path), "zstd"),
        _ => Ok(fs::read(path)?),
    }
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.trim_end_matches(".xz").trim_end_matches(".zst").to_owned()
}

/// Names in dependencies do not tell `-` and `_` apart.
fn name_of(text: &str) -> String {
    text.trim_end_matches(".ko").replace('-', "_")
}

/// The field `depends` of a module's .modinfo section, which is text with zeros between.
fn depends(module: &[u8]) -> Vec<String> {
    let field = b"\0depends=";
    let Some(at) = module.windows(field.len()).position(|window| window == field) else { return Vec::new() };
    let value = module[at + field.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(name_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(file: &str, needs: &[&str]) -> Module {
        Module { file: file.into(), content: Vec::new(), needs: needs.iter().map(ToString::to_string).collect() }
    }

    #[test]
    fn dependencies_are_read_from_the_module() {
        assert_eq!(depends(b"x\0license=GPL\0depends=nvme-core,b_c\0name=n\0"), ["nvme_core", "b_c"]);
        assert!(depends(b"x\0depends=\0name=n\0").is_empty());
        assert!(depends(b"no module").is_empty());
    }

    #[test]
    fn the_innermost_is_loaded_first() {
        let modules = [module("a.ko", &["b.ko", "c.ko"]), module("b.ko", &["c.ko"]), module("c.ko", &[])];
        // modprobe(8) loads from the right.
        assert_eq!(dependencies(&modules), "a.ko: b.ko c.ko\nb.ko: c.ko\nc.ko: \n");
    }
}
