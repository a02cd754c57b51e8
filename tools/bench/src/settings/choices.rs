//! Options that choose one of a few names.

/// What moves the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// pread(2) and pwrite(2).
    Psync,
    /// io_uring.
    Uring,
    /// Loads and stores through mmap(2).
    Mmap,
    /// The client library of peerfs.
    Peerfs,
}

/// Names of engines; the first of each is its own.
const ENGINES: [(&str, EngineKind); 10] = [
    ("psync", EngineKind::Psync),
    ("io_uring", EngineKind::Uring),
    ("mmap", EngineKind::Mmap),
    ("peerfs", EngineKind::Peerfs),
    ("sync", EngineKind::Psync),
    ("pread", EngineKind::Psync),
    ("pwrite", EngineKind::Psync),
    ("vsync", EngineKind::Psync),
    ("pvsync", EngineKind::Psync),
    ("libaio", EngineKind::Uring),
];

impl EngineKind {
    /// Reads a value of `ioengine`.
    pub fn parse(text: &str) -> Result<EngineKind, String> {
        choose(text, &ENGINES)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        name(self, &ENGINES)
    }
}

/// Which way the engine `peerfs` goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathChoice {
    /// Directly where that is decided, by fallback elsewhere.
    Auto,
    /// Directly, or the job fails.
    Direct,
    /// Never directly.
    Fallback,
}

const PATHS: [(&str, PathChoice); 3] =
    [("auto", PathChoice::Auto), ("direct", PathChoice::Direct), ("fallback", PathChoice::Fallback)];

impl PathChoice {
    /// Reads a value of `path`.
    pub fn parse(text: &str) -> Result<PathChoice, String> {
        choose(text, &PATHS)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        name(self, &PATHS)
    }
}

/// How blocks are verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyKind {
    /// A header with a CRC-32C of the rest.
    Crc32c,
    /// Nothing but `verify_pattern`.
    Pattern,
}

const VERIFIERS: [(&str, VerifyKind); 3] =
    [("crc32c", VerifyKind::Crc32c), ("pattern", VerifyKind::Pattern), ("crc32c-intel", VerifyKind::Crc32c)];

impl VerifyKind {
    /// Reads a value of `verify`.
    pub fn parse(text: &str) -> Result<VerifyKind, String> {
        choose(text, &VERIFIERS)
    }
}

/// Where random offsets fall.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Distribution {
    /// Everywhere alike.
    Uniform,
    /// Zipf, with this theta.
    Zipf(f64),
    /// Pareto, with this power.
    Pareto(f64),
}

impl Distribution {
    /// Reads a value of `random_distribution`.
    pub fn parse(text: &str) -> Result<Distribution, String> {
        let (name, parameter) = text.split_once(':').unwrap_or((text, ""));
        let number = |default: f64| match parameter {
            "" => Ok(default),
            parameter => parameter.parse().map_err(|_| format!("{text:?}: expected a number behind the colon")),
        };
        match name {
            "random" if parameter.is_empty() => Ok(Distribution::Uniform),
            "zipf" => match number(1.1)? {
                theta if theta > 0.0 && theta < 100.0 && theta != 1.0 => Ok(Distribution::Zipf(theta)),
                _ => Err(format!("{text:?}: expected a theta above 0 that is not 1")),
            },
            "pareto" => match number(0.2)? {
                power if power > 0.0 && power < 1.0 => Ok(Distribution::Pareto(power)),
                _ => Err(format!("{text:?}: expected a power between 0 and 1")),
            },
            _ => Err(format!("{text:?}: expected random, zipf:THETA or pareto:POWER")),
        }
    }
}

fn choose<T: Copy>(text: &str, known: &[(&str, T)]) -> Result<T, String> {
    let found = known.iter().find(|choice| choice.0 == text);
    found.map(|choice| choice.1).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|choice| choice.0).collect();
        format!("{text:?}: expected one of {}", names.join(", "))
    })
}

fn name<T: PartialEq>(value: T, known: &[(&'static str, T)]) -> &'static str {
    known.iter().find(|choice| choice.1 == value).map_or("", |choice| choice.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_aliases() {
        assert_eq!(EngineKind::parse("libaio").map(EngineKind::name), Ok("io_uring"));
        assert!(EngineKind::parse("rbd").is_err_and(|said| said.contains("io_uring")));
        assert_eq!(PathChoice::parse("direct").map(PathChoice::name), Ok("direct"));
        assert!(VerifyKind::parse("md5").is_err_and(|said| said.contains("md5") && said.contains("crc32c")));
    }

    #[test]
    fn distributions_check_their_parameter() {
        assert_eq!(Distribution::parse("zipf:1.2"), Ok(Distribution::Zipf(1.2)));
        assert_eq!(Distribution::parse("pareto"), Ok(Distribution::Pareto(0.2)));
        for text in ["zipf:1", "zipf:0", "zipf:NaN", "pareto:1", "zoned:1", "zipf:x", "random:1"] {
            assert!(Distribution::parse(text).is_err(), "{text}");
        }
    }
}
