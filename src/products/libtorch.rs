//! The C functions that tch calls (`at_*`, `atg_*`), over the C interface that libtorch keeps stable
//! (`aoti_torch_*`: `torch/csrc/inductor/aoti_torch/c/shim.h`), in the libtorch that `import torch`
//! has loaded.
//!
//! tch is built without its own C++ half, which is compiled against one version of torch. A tch
//! `Tensor` holds a pointer to an `at::Tensor`, and an `AtenTensorHandle` is the same pointer. A
//! function of tch that is used and not defined here keeps `_core` from loading, which
//! `tests/unit/test_compiled_part.py` notices. A panic here would end the process: there is none.
#![allow(unsafe_code, non_snake_case)]

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::ptr::{copy_nonoverlapping, null_mut};
use std::sync::OnceLock;

use crate::products::layout::{Layout, Possible};

/// A pointer to an `at::Tensor`.
type Handle = *mut c_void;

macro_rules! functions {
    ($($name:ident($($arg:ty),*) -> $ret:ty;)*) => {
        /// libtorch's functions, all of them found.
        struct Libtorch { $($name: unsafe extern "C" fn($($arg),*) -> $ret),* }

        impl Libtorch {
            fn load() -> Possible<Self> {
                $(let $name = required(concat!(stringify!($name), "\0"))?;)*
                // SAFETY: each symbol has the type that shim.h declares for it, in every version.
                Ok(unsafe { Self { $($name: std::mem::transmute::<
                    *mut c_void, unsafe extern "C" fn($($arg),*) -> $ret>($name)),* } })
            }
        }

        /// Their names, each with NUL at its end.
        const NAMES: &[&str] = &[$(concat!(stringify!($name), "\0")),*];
    };
}

functions! {
    aoti_torch_delete_tensor_object(Handle) -> i32;
    aoti_torch_get_dim(Handle, *mut i64) -> i32;
    aoti_torch_get_sizes(Handle, *mut *mut i64) -> i32;
    aoti_torch_get_strides(Handle, *mut *mut i64) -> i32;
    aoti_torch_get_dtype(Handle, *mut i32) -> i32;
    aoti_torch_get_device_type(Handle, *mut i32) -> i32;
    aoti_torch_get_device_index(Handle, *mut i32) -> i32;
    aoti_torch_get_data_ptr(Handle, *mut *mut c_void) -> i32;
    aoti_torch_create_tensor_from_blob(
        *mut c_void, i64, *const i64, *const i64, i64, i32, i32, i32, *mut Handle) -> i32;
    aoti_torch_empty_strided(i64, *const i64, *const i64, i32, i32, i32, *mut Handle) -> i32;
    aoti_torch__reinterpret_tensor(
        Handle, i64, *const i64, *const i64, i64, *mut Handle) -> i32;
    aoti_torch_copy_(Handle, Handle, i32) -> i32;
    aoti_torch_zero_(Handle) -> i32;
    aoti_torch_mm_out(Handle, Handle, Handle) -> i32;
    aoti_torch_bmm_out(Handle, Handle, Handle) -> i32;
    aoti_torch_addmm_out(Handle, Handle, Handle, Handle, f32, f32) -> i32;
    aoti_torch_index_put_out(Handle, Handle, *const Handle, u32, Handle, bool) -> i32;
    aoti_torch_grad_mode_is_enabled() -> bool;
    aoti_torch_grad_mode_set_enabled(bool) -> ();
}

/// Each of libtorch's functions that we call, and whether it is there.
pub fn functions() -> Vec<(&'static str, bool)> {
    NAMES.iter().map(|name| (name.trim_end_matches('\0'), symbol(name).is_some())).collect()
}

/// Why tensors cannot be handled beside this torch, if so.
pub fn fault() -> Option<String> {
    libtorch().err()
}

/// Once all functions are found, they stay found; before, torch may not have been imported yet.
fn libtorch() -> Possible<&'static Libtorch> {
    static LIBTORCH: OnceLock<Libtorch> = OnceLock::new();
    match LIBTORCH.get() {
        Some(found) => Ok(found),
        None => Libtorch::load().map(|found| LIBTORCH.get_or_init(|| found)),
    }
}

#[cfg(target_os = "macos")]
const LIBRARIES: [&CStr; 2] = [c"@rpath/libtorch_cpu.dylib", c"libtorch_cpu.dylib"];
#[cfg(not(target_os = "macos"))]
const LIBRARIES: [&CStr; 1] = [c"libtorch_cpu.so"];

/// A function's address; `name` ends with NUL.
fn symbol(name: &str) -> Option<*mut c_void> {
    let name = CStr::from_bytes_until_nul(name.as_bytes()).ok()?;
    // SAFETY: NOLOAD only asks for what is loaded; torch is never unloaded, so its addresses stay.
    let of = |library: &CStr| unsafe {
        let library = libc::dlopen(library.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_NOW);
        if library.is_null() {
            null_mut()
        } else {
            libc::dlsym(library, name.as_ptr())
        }
    };
    LIBRARIES.into_iter().map(of).find(|address| !address.is_null())
}

fn required(name: &str) -> Possible<*mut c_void> {
    symbol(name).ok_or_else(|| match symbol("aoti_torch_get_dim\0") {
        Some(_) => format!("this libtorch has no {}", name.trim_end_matches('\0')),
        None => "libtorch is not loaded, or is older than torch 2.6".to_owned(),
    })
}

/// What libtorch says about the call that it has just refused: torch 2.13 and later keep the text.
fn reason(name: &str) -> String {
    let Some(text) = symbol("torch_exception_get_what_without_backtrace\0") else {
        return format!("libtorch refused {name}; torch before 2.13 prints the reason on stderr");
    };
    // SAFETY: the function takes nothing and returns text of this thread, or null.
    let text = unsafe {
        let text =
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *const c_char>(text)();
        if text.is_null() {
            c"no reason given"
        } else {
            CStr::from_ptr(text)
        }
    };
    format!("libtorch refused {name}: {}", text.to_string_lossy())
}

macro_rules! call {
    ($name:ident($($arg:expr),*)) => {{
        let libtorch = libtorch()?;
        // SAFETY: handles are live tensors; pointers hold as many numbers as is said.
        match unsafe { (libtorch.$name)($($arg),*) } {
            0 => Ok(()),
            _ => Err(reason(stringify!($name))),
        }
    }};
}

/// A tensor that is freed unless tch takes it over.
struct Owned(Handle);

impl Owned {
    fn empty(layout: &Layout, kind: i32, (device, index): (i32, i32)) -> Possible<Self> {
        let (axes, mut made) = (layout.sizes.len() as i64, null_mut());
        let (sizes, strides) = (layout.sizes.as_ptr(), layout.strides.as_ptr());
        call!(aoti_torch_empty_strided(axes, sizes, strides, kind, device, index, &mut made))?;
        Ok(Self(made))
    }

    /// The numbers of another tensor, `offset` further on, as `layout` has them.
    fn view(of: Handle, (layout, offset): (Layout, i64)) -> Possible<Self> {
        let (axes, mut made) = (layout.sizes.len() as i64, null_mut());
        let (sizes, strides) = (layout.sizes.as_ptr(), layout.strides.as_ptr());
        call!(aoti_torch__reinterpret_tensor(of, axes, sizes, strides, offset, &mut made))?;
        Ok(Self(made))
    }

    /// Another handle of the same tensor.
    fn again(of: Handle) -> Possible<Self> {
        Self::view(of, (layout(of)?, 0))
    }

    fn copy(of: Handle, kind: i32, place: (i32, i32)) -> Possible<Self> {
        let made = Self::empty(&Layout::dense(&layout(of)?.sizes), kind, place)?;
        call!(aoti_torch_copy_(made.0, of, 0))?;
        Ok(made)
    }

    fn given_away(self) -> Handle {
        let handle = self.0;
        std::mem::forget(self);
        handle
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        at_free(self.0);
    }
}

fn layout(of: Handle) -> Possible<Layout> {
    let (mut axes, mut sizes, mut strides) = (0, null_mut(), null_mut());
    call!(aoti_torch_get_dim(of, &mut axes))?;
    call!(aoti_torch_get_sizes(of, &mut sizes))?;
    call!(aoti_torch_get_strides(of, &mut strides))?;
    let axes = axes as usize;
    Ok(Layout { sizes: slice(sizes, axes).to_vec(), strides: slice(strides, axes).to_vec() })
}

fn kind(of: Handle) -> Possible<i32> {
    let mut kind = 0;
    call!(aoti_torch_get_dtype(of, &mut kind))?;
    Ok(kind)
}

/// Type and index of a tensor's device.
fn place(of: Handle) -> Possible<(i32, i32)> {
    let (mut device, mut index) = (0, 0);
    call!(aoti_torch_get_device_type(of, &mut device))?;
    call!(aoti_torch_get_device_index(of, &mut index))?;
    Ok((device, index))
}

fn memory(of: Handle) -> Possible<*mut u8> {
    let mut memory = null_mut();
    call!(aoti_torch_get_data_ptr(of, &mut memory))?;
    Ok(memory.cast())
}

/// torch's type and index of a device from tch's number: -1 is the CPU, the rest is CUDA.
fn place_of(device: c_int) -> (i32, i32) {
    if device < 0 {
        (0, -1)
    } else {
        (1, device)
    }
}

fn slice<'a>(data: *const i64, count: usize) -> &'a [i64] {
    if data.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: torch keeps, and tch passes, so many numbers; they are read before the call returns.
    unsafe { std::slice::from_raw_parts(data, count) }
}

thread_local!(static ERROR: RefCell<Option<String>> = const { RefCell::new(None) });

/// The value; or, after an error, `otherwise`, and tch asks for the text at once.
fn report<T>(done: Possible<T>, otherwise: T) -> T {
    done.unwrap_or_else(|text| {
        ERROR.with(|error| *error.borrow_mut() = Some(text));
        otherwise
    })
}

macro_rules! tensors {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $body:block)*) => {$(
        #[no_mangle]
        extern "C" fn $name(out: *mut Handle, $($arg: $ty),*) {
            let made = || -> Possible<Owned> { $body };
            let made = report(made().map(Owned::given_away), null_mut());
            // SAFETY: tch passes room for one handle.
            unsafe { *out = made };
        }
    )*};
}

tensors! {
    fn atg_narrow(of: Handle, axis: i64, start: i64, length: i64) {
        Owned::view(of, layout(of)?.narrow(axis, start, length)?)
    }
    fn atg_transpose(of: Handle, first: i64, second: i64) {
        Owned::view(of, (layout(of)?.transpose(first, second)?, 0))
    }
    fn atg_unsqueeze(of: Handle, axis: i64) {
        Owned::view(of, (layout(of)?.unsqueeze(axis)?, 0))
    }
    fn atg_view(of: Handle, sizes: *const i64, axes: c_int) {
        Owned::view(of, (layout(of)?.view(slice(sizes, axes as usize))?, 0))
    }
    fn atg_unflatten(of: Handle, axis: i64, pieces: *const i64, count: c_int) {
        Owned::view(of, (layout(of)?.unflatten(axis, slice(pieces, count as usize))?, 0))
    }
    fn atg_to(of: Handle, device: c_int) {
        let (from, to) = (place(of)?, place_of(device));
        if from == to || (from.0, to.0) == (0, 0) { Owned::again(of) } else { Owned::copy(of, kind(of)?, to) }
    }
    fn atg_totype(of: Handle, wanted: c_int) {
        if kind(of)? == wanted { Owned::again(of) } else { Owned::copy(of, wanted, place(of)?) }
    }
    fn atg_empty(sizes: *const i64, axes: c_int, kind: c_int, device: c_int) {
        Owned::empty(&Layout::dense(slice(sizes, axes as usize)), kind, place_of(device))
    }
    fn atg_zeros(sizes: *const i64, axes: c_int, kind: c_int, device: c_int) {
        let made = Owned::empty(&Layout::dense(slice(sizes, axes as usize)), kind, place_of(device))?;
        call!(aoti_torch_zero_(made.0))?;
        Ok(made)
    }
    fn atg_mm_out(to: Handle, left: Handle, right: Handle) {
        call!(aoti_torch_mm_out(to, left, right))?;
        Owned::again(to)
    }
    fn atg_bmm_out(to: Handle, left: Handle, right: Handle) {
        call!(aoti_torch_bmm_out(to, left, right))?;
        Owned::again(to)
    }
    fn atg_addmm_out(to: Handle, plus: Handle, left: Handle, right: Handle) {
        call!(aoti_torch_addmm_out(to, plus, left, right, 1.0, 1.0))?;
        Owned::again(to)
    }
    fn atg_index_put_(to: Handle, at: *const Handle, axes: c_int, add: Handle, sums: c_int) {
        call!(aoti_torch_index_put_out(to, to, at, axes as u32, add, sums != 0))?;
        Owned::again(to)
    }
}

#[no_mangle]
extern "C" fn at_free(of: Handle) {
    if let (false, Ok(libtorch)) = (of.is_null(), libtorch()) {
        // SAFETY: tch, or `Owned`, gives each handle here once.
        let _ = unsafe { (libtorch.aoti_torch_delete_tensor_object)(of) };
    }
}

macro_rules! values {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) -> $value:ty, else $otherwise:expr, $body:block)*) => {$(
        #[no_mangle]
        extern "C" fn $name($($arg: $ty),*) -> $value {
            let value = || -> Possible<$value> { $body };
            report(value(), $otherwise)
        }
    )*};
}

values! {
    fn at_dim(of: Handle) -> usize, else 0, { Ok(layout(of)?.sizes.len()) }
    fn at_scalar_type(of: Handle) -> c_int, else -1, { kind(of) }
    fn at_device(of: Handle) -> c_int, else -1, {
        let (device, index) = place(of)?;
        Ok(if device == 0 { -1 } else { index })
    }
    fn at_shape(of: Handle, to: *mut i64) -> (), else (), {
        let sizes = layout(of)?.sizes;
        // SAFETY: tch made room for `at_dim` numbers.
        unsafe { copy_nonoverlapping(sizes.as_ptr(), to, sizes.len()) };
        Ok(())
    }
    fn at_copy_(to: Handle, from: Handle) -> (), else (), { call!(aoti_torch_copy_(to, from, 0)) }
    fn at_copy_data(of: Handle, to: *mut c_void, count: usize, bytes: usize) -> (), else (), {
        let layout = layout(of)?;
        if place(of)?.0 != 0 || !layout.is_dense() || layout.count() != count as i64 {
            return Err(format!("expected {count} dense numbers on the CPU, got {layout:?}"));
        }
        let from = memory(of)?;
        // SAFETY: both hold so many bytes.
        unsafe { copy_nonoverlapping(from, to.cast(), count * bytes) };
        Ok(())
    }
    fn at_tensor_of_blob(
        data: *mut c_void, sizes: *const i64, axes: usize, strides: *const i64, given: usize,
        kind: c_int, device: c_int
    ) -> Handle, else null_mut(), {
        let mut layout = Layout::dense(slice(sizes, axes));
        if given > 0 {
            layout.strides = slice(strides, given).to_vec();
        }
        let ((device, index), mut made) = (place_of(device), null_mut());
        let (axes, sizes, strides) = (axes as i64, layout.sizes.as_ptr(), layout.strides.as_ptr());
        call!(aoti_torch_create_tensor_from_blob(
            data, axes, sizes, strides, 0, kind, device, index, &mut made))?;
        Ok(made)
    }
    fn at_tensor_of_data(
        data: *const c_void, sizes: *const i64, axes: usize, bytes: usize, kind: c_int
    ) -> Handle, else null_mut(), {
        let layout = Layout::dense(slice(sizes, axes));
        let made = Owned::empty(&layout, kind, place_of(-1))?;
        let to = memory(made.0)?;
        // SAFETY: both hold so many bytes.
        unsafe { copy_nonoverlapping(data.cast(), to, layout.count() as usize * bytes) };
        Ok(made.given_away())
    }
    fn at_grad_set_enabled(on: c_int) -> c_int, else 0, {
        let libtorch = libtorch()?;
        // SAFETY: they read and set a switch of this thread.
        let before = unsafe { (libtorch.aoti_torch_grad_mode_is_enabled)() };
        unsafe { (libtorch.aoti_torch_grad_mode_set_enabled)(on != 0) };
        Ok(c_int::from(before))
    }
}

#[no_mangle]
extern "C" fn get_and_reset_last_err() -> *mut c_char {
    let Some(text) = ERROR.with(|error| error.borrow_mut().take()) else { return null_mut() };
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    // SAFETY: text with NUL at its end; tch frees the copy with free().
    unsafe { libc::strdup(text.as_ptr()) }
}
