//! The process-wide SIGBUS handler behind guarded copies.

#![cfg(target_arch = "x86_64")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;

/// Answers where to continue when the instruction at an address faults. Called in a signal handler.
pub(crate) type Landing = fn(usize) -> Option<usize>;

static LANDING: OnceLock<Landing> = OnceLock::new();
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs the handler; call once.
pub(crate) fn install(landing: Landing) -> io::Result<()> {
    let mut previous = MaybeUninit::uninit();
    // SAFETY: asks only; `previous` has room for the answer.
    check(unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), previous.as_mut_ptr()) })?;
    // Stored before the handler is installed, which may run at once.
    LANDING.get_or_init(|| landing);
    // SAFETY: sigaction succeeded, so it filled the structure in.
    PREVIOUS.get_or_init(|| unsafe { previous.assume_init() });
    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    // SAFETY: all-zero bytes are a valid sigaction.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the handler has the signature SA_SIGINFO asks for and does async-signal-safe things only.
    check(unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) })
}

extern "C" fn on_sigbus(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a ucontext_t that is ours to change while the handler runs.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let instruction = &mut registers[libc::REG_RIP as usize];
    // SAFETY: the kernel passes a filled siginfo_t.
    let raised_by_an_access = unsafe { (*info).si_code } > 0;
    let landing = LANDING.get().and_then(|landing| landing(*instruction as usize));
    match landing {
        Some(landing) if raised_by_an_access => *instruction = landing as i64,
        _ => pass_on(signal, info, context, raised_by_an_access),
    }
}

/// Does what would have happened without us.
fn pass_on(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void, raised_by_an_access: bool) {
    let Some(previous) = PREVIOUS.get() else {
        return die(signal);
    };
    match previous.sa_sigaction {
        libc::SIG_IGN if !raised_by_an_access => {}
        // The kernel does not let an access be ignored.
        libc::SIG_DFL | libc::SIG_IGN => die(signal),
        address if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: it was registered with SA_SIGINFO, so it has this signature.
            let handler: Handler = unsafe { std::mem::transmute(address) };
            handler(signal, info, context);
        }
        address => {
            // SAFETY: it was registered without SA_SIGINFO, so it has this signature.
            let handler: extern "C" fn(i32) = unsafe { std::mem::transmute(address) };
            handler(signal);
        }
    }
}

/// Restores the default action; the signal, pending until the handler returns, ends the process.
fn die(signal: i32) {
    // SAFETY: both calls are async-signal-safe and take a valid signal number.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

fn check(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
