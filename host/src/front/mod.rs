//! Front doors: plans launched on other libraries' slices of device memory and streams, in place of raw addresses.
//!
//! | feature | module | what it takes |
//! |---|---|---|
//! | `cudarc` | `front::cudarc` | `CudaSlice`, `CudaView`, `CudaViewMut`, `CudaStream` |
//! | `cust` | `front::cust` | `DeviceBuffer`, `DeviceSlice`, `Stream`; kernels are loaded and launched through cust |
//!
//! Both check the same before a launch: that each tensor which the plan's problem has is there, of the right element type, in the
//! stream's context and no shorter than its layout reaches; that none is there which the problem does not have; and that the workspace is
//! as long as the plan says. Each slice starts at its tensor's lowest element (element [0, 0, 0, 0] unless strides are negative).
//!
//! Another library's slices need two traits, [`DeviceSlice`] and [`Queue`]; then [`LaunchSlices`] launches every plan on them.

mod attention;
mod cache;
#[cfg(feature = "cudarc")]
pub mod cudarc;
#[cfg(feature = "cust")]
pub mod cust;

use flashtile_abi::DType;

pub use self::attention::{AttentionSlices, MergeSlices, ServingSlices};
pub use self::cache::{AppendSlices, CopiedCache, CopySlices, GatherSlices};
use crate::{
    device::{Device, Stream},
    error::{Error, Result},
    extent::Extent,
};

/// What a slice's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// f16.
    F16,
    /// bf16.
    Bf16,
    /// f32.
    F32,
    /// A byte: an e4m3 number's code, or a mask's element.
    U8,
    /// The bits of an f16 or of a bf16.
    U16,
    /// i32.
    I32,
    /// u32.
    U32,
    /// i64.
    I64,
}

impl ElementType {
    /// Name, for messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::I64 => "i64",
        }
    }

    /// What slices of a tensor's elements may have.
    const fn of(dtype: DType) -> &'static [Self] {
        match dtype {
            DType::F16 => &[Self::F16, Self::U16],
            DType::Bf16 => &[Self::Bf16, Self::U16],
            DType::F32 => &[Self::F32],
            DType::E4m3 => &[Self::U8],
        }
    }
}

/// Lengths, starts, tables, and words of bits: what counts is below 2^31, where the two are one.
const INTS: &[ElementType] = &[ElementType::I32, ElementType::U32];
const FLOATS: &[ElementType] = &[ElementType::F32];

/// Rust types that are elements of slices.
pub trait Element: Copy + 'static {
    /// What they are.
    const TYPE: ElementType;
}

macro_rules! elements {
    ($($rust:ty => $element:ident),* $(,)?) => {
        $(
            impl Element for $rust {
                const TYPE: ElementType = ElementType::$element;
            }
        )*
    };
}

elements! {
    half::f16 => F16,
    half::bf16 => Bf16,
    f32 => F32,
    u8 => U8,
    u16 => U16,
    i32 => I32,
    u32 => U32,
    i64 => I64,
}

/// A stream of another library.
pub trait Queue {
    /// What launches on it are made through.
    type Device;
    /// Keeps a slice's uses in order; dropped when the launch has been enqueued.
    type Use<'a>
    where
        Self: 'a;

    /// Refuses a stream that is not the device's.
    ///
    /// # Errors
    /// [`Error::BadInput`] for the argument `stream`, and what the driver says.
    fn check(&self, device: &Self::Device) -> Result<()>;

    /// Calls a function with the device and the stream as this library knows them, once.
    ///
    /// # Errors
    /// The function's.
    fn enqueue(
        &self,
        device: &Self::Device,
        launch: &mut dyn FnMut(&dyn Device, Stream) -> Result<()>,
    ) -> Result<()>;
}

/// A slice of device memory of another library.
pub trait DeviceSlice<Q: Queue> {
    /// What its elements are.
    fn element(&self) -> ElementType;

    /// Its length in bytes.
    fn bytes(&self) -> usize;

    /// Whether work on the stream may use the memory, as far as the library knows: whether it is of the stream's context.
    fn is_near(&self, stream: &Q) -> bool;

    /// Its address, for work that is enqueued on the stream before the second is dropped.
    fn locate<'a>(&'a mut self, stream: &'a Q) -> (u64, Q::Use<'a>);
}

/// A plan that can be launched on slices.
pub trait LaunchSlices {
    /// Slices of what it reads (`I`) and writes (`O`).
    type Slices<I, O>;

    /// Checks the slices and enqueues the plan's kernels. Allocates no device memory and does not wait.
    ///
    /// # Errors
    /// [`Error::BadInput`] names the slice: missing, superfluous, too short, of another type or context; whatever the plan's `launch`
    /// refuses.
    ///
    /// # Safety
    /// Until the kernels have finished, the slices' memory stays allocated, what is read is not written, and what is written is accessed by
    /// nothing else; outputs overlap nothing. The stream is alive.
    unsafe fn launch_slices<Q, I, O>(
        &self,
        device: &Q::Device,
        stream: &Q,
        slices: Self::Slices<I, O>,
    ) -> Result<()>
    where
        Q: Queue,
        I: DeviceSlice<Q>,
        O: DeviceSlice<Q>;
}

/// Takes the addresses of slices that pass their checks.
struct Binder<'a, Q: Queue + 'a> {
    stream: &'a Q,
    uses: Vec<Q::Use<'a>>,
}

impl<'a, Q: Queue> Binder<'a, Q> {
    fn new(stream: &'a Q) -> Self {
        Self {
            stream,
            uses: Vec::new(),
        }
    }

    /// Address of element [0, 0, 0, 0] of a tensor that starts the slice; 0 without one.
    fn bind<S: DeviceSlice<Q>>(
        &mut self,
        argument: &'static str,
        extent: Option<Extent>,
        elements: &[ElementType],
        slice: Option<&'a mut S>,
    ) -> Result<u64> {
        match (extent, slice) {
            (None, None) => Ok(0),
            (Some(extent), Some(slice)) => {
                let lowest = self.take(argument, extent.bytes(), elements, slice)?;
                Ok(extent.origin(lowest))
            }
            // Nothing is read of a tensor without elements.
            (Some(extent), None) if extent.bytes() == 0 => Ok(0),
            (Some(extent), None) => Err(Error::bad(
                argument,
                format!("a slice of {} bytes", extent.bytes()),
                "none",
            )),
            (None, Some(slice)) => Err(Error::bad(
                argument,
                "no slice, since the problem has no such tensor",
                format!("one of {} bytes", slice.bytes()),
            )),
        }
    }

    /// Address of scratch memory; 0 if none is needed.
    fn workspace<S: DeviceSlice<Q>>(
        &mut self,
        bytes: usize,
        slice: Option<&'a mut S>,
    ) -> Result<u64> {
        match slice {
            _ if bytes == 0 => Ok(0),
            Some(slice) => self.take("workspace", bytes, &[], slice),
            None => Err(Error::bad(
                "workspace",
                format!("a slice of {bytes} bytes"),
                "none",
            )),
        }
    }

    /// Address of a slice; without elements, of any.
    fn take<S: DeviceSlice<Q>>(
        &mut self,
        argument: &'static str,
        bytes: usize,
        elements: &[ElementType],
        slice: &'a mut S,
    ) -> Result<u64> {
        let element = slice.element();
        if !elements.is_empty() && !elements.contains(&element) {
            let names: Vec<_> = elements.iter().map(|it| it.as_str()).collect();
            return Err(Error::bad(
                argument,
                format!("elements of type {}", names.join(" or ")),
                element.as_str(),
            ));
        }
        if slice.bytes() < bytes {
            return Err(Error::bad(
                argument,
                format!("a slice of at least {bytes} bytes"),
                format!("{} bytes", slice.bytes()),
            ));
        }
        if !slice.is_near(self.stream) {
            return Err(Error::bad(
                argument,
                "memory of the stream's context",
                "memory of another one",
            ));
        }
        let (address, used) = slice.locate(self.stream);
        self.uses.push(used);
        Ok(address)
    }
}
