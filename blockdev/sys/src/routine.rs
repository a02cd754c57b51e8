//! The shape of an access that may fault: one instruction at a known address.
//!
//! `guarded` says where a process-wide SIGBUS handler continues when it does.

/// A routine whose only instruction that may fault is `$access`; it returns 1 after a fault, else 0.
macro_rules! routine {
    ($name:literal: $before:literal, $access:literal, $after:literal) => {
        std::arch::global_asm!(
            ".pushsection .text.peerfs_guarded,\"ax\",@progbits",
            concat!(".hidden ", $name),
            concat!(".globl ", $name),
            concat!(".type ", $name, ",@function"),
            concat!($name, ":"),
            $before,
            "mov ecx, 1",
            concat!(".hidden ", $name, "_access"),
            concat!(".globl ", $name, "_access"),
            concat!($name, "_access:"),
            $access,
            $after,
            "xor ecx, ecx",
            concat!(".hidden ", $name, "_landing"),
            concat!(".globl ", $name, "_landing"),
            concat!($name, "_landing:"),
            "mov eax, ecx",
            "ret",
            concat!(".size ", $name, ",.-", $name),
            ".popsection",
        );
    };
}

pub(crate) use routine;
