//! q, k and v from a safetensors file that may be anything, and their scales.

mod extras;
mod scales;

use std::{
    collections::HashSet,
    fmt,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use extras::Extras;
use flashtile::{DType, Inputs, Problem, Scales, TensorLayout};
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use scales::ScaleTensor;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

pub use extras::ServingContents;

use crate::{
    failure::{Failure, Result},
    memory,
};

/// Most bytes of a header; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// The tensors that every file has.
const TENSORS: [&str; 3] = ["q", "k", "v"];

/// A file, or anything else to read from, whose header is read and found good.
#[derive(Debug)]
pub struct Source<R = File> {
    file: R,
    dtype: DType,
    /// Of k and v.
    kv_dtype: DType,
    tensors: [Tensor; 3],
    /// Whether there is a v; else it stands for k.
    has_values: bool,
    scales: [Option<ScaleTensor>; 3],
    extras: Extras,
}

/// A tensor of its file. Without a batch ([total, heads, head_dim]), a batch of one.
#[derive(Clone, Copy, Debug)]
struct Tensor {
    shape: [usize; 4],
    data: Span,
}

/// Where a tensor's bytes are in its file.
#[derive(Clone, Copy, Debug)]
struct Span {
    name: &'static str,
    begin: u64,
    bytes: usize,
}

impl Span {
    fn new(name: &'static str, info: &TensorInfo, data_begin: u64) -> Self {
        let (begin, end) = info.data_offsets;
        Self {
            name,
            begin: data_begin.saturating_add(begin as u64),
            bytes: end.saturating_sub(begin),
        }
    }

    /// Reads the bytes.
    fn read(&self, file: &mut (impl Read + Seek)) -> Result<Vec<u8>> {
        let failed = |found: String| {
            let expected = format!("{} readable bytes", self.bytes);
            Failure::bad(self.name, expected, found)
        };
        let mut content = memory::vector(self.name, self.bytes)?;
        file.seek(SeekFrom::Start(self.begin))
            .and_then(|_| {
                let file = Read::by_ref(file);
                file.take(self.bytes as u64).read_to_end(&mut content)
            })
            .map_err(|error| failed(error.to_string()))?;
        match content.len() == self.bytes {
            true => Ok(content),
            false => Err(failed(content.len().to_string())),
        }
    }
}

/// A file's tensors.
#[derive(Debug)]
pub struct Contents {
    tensors: [Vec<u8>; 3],
    scales: [Vec<f32>; 3],
}

impl Contents {
    /// As the library takes them.
    pub fn inputs(&self) -> Inputs<'_> {
        let ([q, k, v], [q_scale, k_scale, v_scale]) = (&self.tensors, &self.scales);
        Inputs {
            q,
            k,
            v,
            q_scale,
            k_scale,
            v_scale,
        }
    }
}

impl Source {
    /// Opens a file and reads its header; no tensor yet.
    ///
    /// # Errors
    /// The file can't be read, or is not what [`Source::new`] takes.
    pub fn open(path: &Path) -> Result<Self> {
        let bad = |expected: &str, found: String| Failure::bad(path.display(), expected, found);
        let unreadable = |error: std::io::Error| bad("a file that can be read", error.to_string());
        // Opening a pipe would wait for its writer.
        let kind = std::fs::metadata(path).map_err(unreadable)?;
        if !kind.is_file() {
            return Err(bad("a regular file", "a folder, device or pipe".into()));
        }
        let file = File::open(path).map_err(unreadable)?;
        let length = file.metadata().map_err(unreadable)?.len();
        Self::new(file, length, path.display())
    }
}

impl<R: Read + Seek> Source<R> {
    /// Reads the header of a safetensors file of so many bytes; `name` is for messages.
    ///
    /// # Errors
    /// It is no safetensors file, not whole, or has no q, k and v that go together.
    pub fn new(mut file: R, length: u64, name: impl fmt::Display) -> Result<Self> {
        let bad = |expected: &str, found: String| Failure::bad(&name, expected, found);
        let unreadable = |error: std::io::Error| bad("a file that can be read", error.to_string());
        let mut word = [0; 8];
        file.read_exact(&mut word).map_err(|_| {
            bad(
                "a safetensors file, which begins with the 8-byte size of its header",
                format!("{length} bytes"),
            )
        })?;
        let header = u64::from_le_bytes(word);
        let data_begin = header.checked_add(8);
        let Some(data_begin) = data_begin.filter(|&end| end <= length && header <= MAX_HEADER)
        else {
            let expected =
                "a safetensors file, with a header of at most 100000000 bytes inside the file";
            return Err(bad(
                expected,
                format!("a header of {header} bytes in a file of {length}"),
            ));
        };
        let mut text = memory::vector("header", header as usize)?;
        let read = Read::by_ref(&mut file).take(header).read_to_end(&mut text);
        if read.map_err(unreadable)? as u64 != header {
            return Err(bad("a whole header", "the end of the file".into()));
        }
        let metadata: Metadata = serde_json::from_slice(&text).map_err(|error| {
            explain(&text).unwrap_or_else(|| bad("a safetensors header", error.to_string()))
        })?;
        if let Some(name) = repeated_name(&text) {
            return Err(Failure::bad(name, "one tensor of this name", "several"));
        }
        let data = length - data_begin;
        if metadata.data_len() as u64 != data {
            return Err(bad(
                &format!("{} bytes of tensors after the header", metadata.data_len()),
                format!("{data}"),
            ));
        }
        let extras = Extras::find(&metadata, data_begin)?;
        let ([dtype, kv_dtype], tensors) = tensors(&metadata, data_begin, extras.dims())?;
        let scales = scales::find(&metadata, data_begin)?;
        Ok(Self {
            file,
            dtype,
            kv_dtype,
            tensors,
            has_values: metadata.info("v").is_some(),
            scales,
            extras,
        })
    }

    /// Refuses a file without values, unless they are elements of keys, and one with values if they are.
    ///
    /// # Errors
    /// It says what there is.
    pub fn check_values(&self, latent: Option<usize>) -> Result<()> {
        match (self.has_values, latent) {
            (false, None) => Err(Failure::bad(
                "v",
                "a tensor, or --latent N for values that are the first N elements of k",
                "neither",
            )),
            (true, Some(_)) => Err(Failure::bad(
                "--latent",
                "a file without v, since values are elements of k",
                "a file with v",
            )),
            _ => Ok(()),
        }
    }

    /// Unmasked attention over these tensors, not yet checked. Scales by blocks are of so many rows; `None` is the default.
    ///
    /// # Errors
    /// Rows of blocks are given, but no scales are by blocks.
    pub fn problem(&self, scale_block: Option<u32>) -> Result<Problem> {
        let [q, k, v] = self.tensors.map(|t| TensorLayout::contiguous(t.shape));
        let [batch, seqlen, heads, _] = q.shape;
        let out = TensorLayout::contiguous([batch, seqlen, heads, v.shape[3]]);
        let [q_scale, k_scale, v_scale] = scales::layouts(&self.scales, scale_block)?;
        let problem = Problem::new(self.dtype, q, k, v, out);
        Ok(problem.scales(Scales {
            q: q_scale,
            k: k_scale,
            v: v_scale,
        }))
    }

    /// Dtype of q.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Elements of the output. `None` on overflow.
    pub fn outputs(&self) -> Option<u64> {
        let [q, _, v] = self.tensors.map(|tensor| tensor.shape);
        let shape = [q[0], q[1], q[2], v[3]].map(|n| n as u64);
        // Whatever the others are, there is nothing if one is 0.
        match shape.contains(&0) {
            true => Some(0),
            false => shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)),
        }
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        let scales = self.scales.iter().flatten().map(|scales| scales.data);
        let all = self.tensors.iter().map(|t| t.data).chain(scales);
        all.map(|data| data.bytes as u64).sum::<u64>() + self.extras.bytes()
    }

    /// Refuses scales whose shape is not that of the problem's.
    ///
    /// # Errors
    /// It names the shapes that there may be.
    pub fn check_scales(&self, problem: &Problem) -> Result<()> {
        scales::check(&self.scales, problem)
    }

    /// Reads q, k, v and their scales.
    ///
    /// # Errors
    /// The file got shorter, can't be read, or a tensor does not fit in memory.
    pub fn read(mut self) -> Result<Contents> {
        let mut contents = Contents {
            tensors: [const { Vec::new() }; 3],
            scales: [const { Vec::new() }; 3],
        };
        for (content, tensor) in contents.tensors.iter_mut().zip(self.tensors) {
            *content = tensor.data.read(&mut self.file)?;
        }
        for (content, scales) in contents.scales.iter_mut().zip(&self.scales) {
            if let Some(scales) = scales {
                let bytes = scales.data.read(&mut self.file)?;
                let (words, _) = bytes.as_chunks::<4>();
                *content = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
            }
        }
        Ok(contents)
    }
}

/// The dtype of q, that of k and v, and the tensors, which must have these dimensions.
fn tensors(
    metadata: &Metadata,
    data_begin: u64,
    dims: [&str; 3],
) -> Result<([DType; 2], [Tensor; 3])> {
    let mut found: Vec<(Tensor, Dtype)> = Vec::new();
    for (name, dims) in TENSORS.into_iter().zip(dims) {
        let Some(info) = metadata.info(name) else {
            // Values may be elements of keys, as an option says.
            if let ("v", [_, (k, of_k)]) = (name, found.as_slice()) {
                let data = Span {
                    name,
                    begin: data_begin,
                    bytes: 0,
                };
                found.push((Tensor { data, ..*k }, *of_k));
                continue;
            }
            let mut names = metadata.offset_keys();
            names.truncate(8);
            let names = match names.is_empty() {
                true => "no tensors".into(),
                false => names.join(", "),
            };
            return Err(Failure::bad(name, format!("a tensor {dims}"), names));
        };
        let rank = dims.split(',').count();
        let shape = match (rank, info.shape.as_slice()) {
            (4, &[a, b, c, d]) => [a, b, c, d],
            (3, &[b, c, d]) => [1, b, c, d],
            _ => {
                return Err(Failure::bad(
                    name,
                    format!("{rank} dimensions {dims}"),
                    format!("shape {:?}", info.shape),
                ));
            }
        };
        let tensor = Tensor {
            shape,
            data: Span::new(name, info, data_begin),
        };
        found.push((tensor, info.dtype));
    }
    let &[(q, of_q), (k, of_k), (v, of_v)] = found.as_slice() else {
        // Three names give three tensors.
        return Err(Failure::bad("file", "q, k and v", "fewer"));
    };
    let short = matches!(of_q, Dtype::F16 | Dtype::BF16);
    // 8-bit keys and values may meet 16-bit queries.
    let (kv, whose) = match short && of_k == Dtype::F8_E4M3 {
        true => (of_k, "k"),
        false => (of_q, "q"),
    };
    let q_dtype = dtype("q", of_q)?;
    for (tensor, other) in [(k, of_k), (v, of_v)] {
        if other != kv {
            return Err(Failure::bad(
                tensor.data.name,
                format!("{kv:?}, the dtype of {whose}"),
                format!("{other:?}"),
            ));
        }
    }
    Ok(([q_dtype, dtype("k", kv)?], [q, k, v]))
}

fn dtype(name: &str, dtype: Dtype) -> Result<DType> {
    match dtype {
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::Bf16),
        Dtype::F32 => Ok(DType::F32),
        Dtype::F8_E4M3 => Ok(DType::E4m3),
        other => Err(Failure::bad(
            name,
            "F16, BF16, F32 or F8_E4M3",
            format!("{other:?}"),
        )),
    }
}

/// A name that a header has more than once. The format forbids it, and parsers differ in which one they take.
fn repeated_name(header: &[u8]) -> Option<String> {
    struct Names;

    impl<'de> Visitor<'de> for Names {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut seen = HashSet::new();
            let mut repeated = None;
            while let Some((name, IgnoredAny)) = map.next_entry::<String, _>()? {
                if !seen.contains(&name) {
                    seen.insert(name);
                } else {
                    repeated.get_or_insert(name);
                }
            }
            Ok(repeated)
        }
    }

    let mut json = serde_json::Deserializer::from_slice(header);
    json.deserialize_map(Names).ok().flatten()
}

/// The first tensor of a header that is not what a safetensors header may say of a tensor.
fn explain(header: &[u8]) -> Option<Failure> {
    let entries: Map<String, Value> = serde_json::from_slice(header).ok()?;
    let mut infos: Vec<(String, TensorInfo)> = Vec::new();
    for (name, value) in entries {
        if name == "__metadata__" {
            continue;
        }
        match serde_json::from_value(value) {
            Ok(info) => infos.push((name, info)),
            Err(error) => {
                return Some(Failure::bad(name, "dtype, shape and data_offsets", error));
            }
        }
    }
    infos.sort_by_key(|(_, info)| info.data_offsets);
    let mut next = 0;
    for (name, info) in infos {
        let (begin, end) = info.data_offsets;
        let elements = info
            .shape
            .iter()
            .try_fold(1usize, |product, &n| product.checked_mul(n));
        let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        let Some(bits) = bits else {
            let found = format!("shape {:?}", info.shape);
            return Some(Failure::bad(name, "a size that fits in 64 bits", found));
        };
        if begin != next || end < begin {
            return Some(Failure::bad(
                name,
                format!("data that begins at {next}, after the tensor before it"),
                format!("data_offsets [{begin}, {end}]"),
            ));
        }
        if bits % 8 != 0 || end - begin != bits / 8 {
            return Some(Failure::bad(
                name,
                format!("{} bytes for {:?} {:?}", bits / 8, info.dtype, info.shape),
                format!("data_offsets [{begin}, {end}]"),
            ));
        }
        next = end;
    }
    None
}
