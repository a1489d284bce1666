//! What is measured: one problem at a time.

use std::{fmt, str::FromStr};

use flashtile::{
    Algorithm, ArchChoice, CausalAlignment, DType, DeviceInfo, Problem, Shape, TensorLayout,
    Window,
    reference::visible,
    serving::{CacheLayout, PageTable, ServingProblem},
    variants,
};

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All.
    Full,
    /// Those up to its diagonal, which ends with the last key.
    Causal,
    /// Those so near to its diagonal.
    Window(Window),
}

impl Mask {
    /// Name in results.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Causal => "causal",
            Self::Window(_) => "window",
        }
    }
}

/// How keys and values lie in memory, which decides what kind of kernel has the work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// [batch, seqlen, heads, head_dim]: dense kernels.
    #[default]
    Dense,
    /// One sequence after the other, as queries are too (varlen): serving kernels.
    Packed,
    /// In pages of so many rows, in no order: serving kernels.
    Pages(usize),
    /// So, values being the first elements of keys (MLA).
    Latent(usize),
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense => f.write_str("dense"),
            Self::Packed => f.write_str("packed"),
            Self::Pages(rows) => write!(f, "pages{rows}"),
            Self::Latent(rows) => write!(f, "latent{rows}"),
        }
    }
}

impl FromStr for Cache {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rows = |name| {
            let rows: Option<usize> = text.strip_prefix(name)?.parse().ok();
            rows.filter(|&rows| rows > 0)
        };
        match (text, rows("pages"), rows("latent")) {
            ("dense", ..) => Ok(Self::Dense),
            ("packed", ..) => Ok(Self::Packed),
            (_, Some(rows), _) => Ok(Self::Pages(rows)),
            (_, _, Some(rows)) => Ok(Self::Latent(rows)),
            _ => Err("expected dense, packed, pagesN or latentN".into()),
        }
    }
}

/// How many query heads share a key/value head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group(pub usize);

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("mha"),
            n => write!(f, "gqa{n}"),
        }
    }
}

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = match text.strip_prefix("gqa") {
            Some(number) => number.parse().ok(),
            None => (text == "mha").then_some(1),
        };
        match size {
            Some(size @ 1..=1024) => Ok(Self(size)),
            _ => Err("expected mha, or gqaN with N query heads to a key/value head".into()),
        }
    }
}

/// Elements of queries and keys, and of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeadDim {
    /// Of a query and of a key.
    pub qk: usize,
    /// Of a value.
    pub v: usize,
}

impl From<usize> for HeadDim {
    /// The same for all.
    fn from(dim: usize) -> Self {
        Self { qk: dim, v: dim }
    }
}

impl fmt::Display for HeadDim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.qk == self.v {
            true => write!(f, "{}", self.qk),
            false => write!(f, "{}/{}", self.qk, self.v),
        }
    }
}

impl FromStr for HeadDim {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (qk, v) = text.split_once('/').unwrap_or((text, text));
        let number = |text: &str| text.parse().ok().filter(|&n: &usize| n > 0);
        match (number(qk), number(v)) {
            (Some(qk), Some(v)) => Ok(Self { qk, v }),
            _ => Err("expected a number, or QK/V".into()),
        }
    }
}

/// One problem to be measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// Element type of q, k, v and out.
    pub dtype: DType,
    /// Sizes.
    pub shape: Shape,
    /// Mask.
    pub mask: Mask,
    /// Where keys and values are.
    pub cache: Cache,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.shape;
        write!(
            f,
            "{} b{} q{} k{} h{}/{} d{}/{} {}",
            self.dtype.as_str(),
            s.batch,
            s.seqlen_q,
            s.seqlen_k,
            s.heads_q,
            s.heads_kv,
            s.head_dim_qk,
            s.head_dim_v,
            self.mask.name()
        )?;
        match self.mask {
            Mask::Window(Window { left, right }) => {
                let side = |side: Option<u32>| side.map_or(-1, i64::from);
                write!(f, "={},{}", side(left), side(right))?;
            }
            Mask::Full | Mask::Causal => {}
        }
        match self.cache {
            Cache::Dense => Ok(()),
            cache => write!(f, " {cache}"),
        }
    }
}

impl Cell {
    /// The problem, if serving kernels have the work: out alone, keys split as the library splits them.
    pub fn serving_problem(&self, arch: ArchChoice) -> Option<ServingProblem> {
        let s = &self.shape;
        let q = TensorLayout::contiguous([s.batch, s.seqlen_q, s.heads_q, s.head_dim_qk]);
        let pages = |rows: usize, dim: usize| {
            let blocks = s.batch.saturating_mul(s.seqlen_k.div_ceil(rows));
            CacheLayout::contiguous([blocks, rows, s.heads_kv, dim])
        };
        let in_pages = |problem: ServingProblem, rows: usize| {
            let table = PageTable::contiguous(s.seqlen_k.div_ceil(rows));
            problem.pages(table).k_used(s.seqlen_k)
        };
        let problem = match self.cache {
            Cache::Dense => return None,
            Cache::Packed => {
                let tokens = Shape {
                    seqlen_q: s.batch.saturating_mul(s.seqlen_q),
                    seqlen_k: s.batch.saturating_mul(s.seqlen_k),
                    ..*s
                };
                ServingProblem::varlen(self.dtype, tokens, s.seqlen_q, s.seqlen_k)
            }
            Cache::Pages(rows) => {
                let (k, v) = (pages(rows, s.head_dim_qk), pages(rows, s.head_dim_v));
                in_pages(ServingProblem::new(self.dtype, s.batch, q, k, v), rows)
            }
            Cache::Latent(rows) => {
                let k = pages(rows, s.head_dim_qk);
                let problem = ServingProblem::latent(self.dtype, s.batch, q, k, s.head_dim_v);
                in_pages(problem, rows)
            }
        };
        let problem = problem.arch(arch);
        Some(match self.mask {
            Mask::Full => problem,
            Mask::Causal => problem.causal(CausalAlignment::BottomRight),
            Mask::Window(Window { left, right }) => problem.window(left, right),
        })
    }

    /// Refuses a cell that is no problem, or for which such a device has no kernel.
    ///
    /// # Errors
    /// What planning says.
    pub fn check(&self, device: &DeviceInfo, arch: ArchChoice) -> flashtile::Result<()> {
        match self.serving_problem(arch) {
            Some(problem) => problem.plan(device).map(|_| ()),
            None => self.problem(arch).plan(device).map(|_| ()),
        }
    }

    /// Type of the output's elements.
    pub fn out_element(&self) -> DType {
        match self.serving_problem(ArchChoice::Auto) {
            Some(problem) => problem.out_element(),
            None => self.problem(ArchChoice::Auto).out_element(),
        }
    }

    /// The problem: contiguous tensors [batch, seqlen, heads, head_dim], fused, out alone. Where keys are elsewhere, it is what is
    /// computed all the same.
    pub fn problem(&self, arch: ArchChoice) -> Problem {
        let problem = Problem::contiguous(self.dtype, self.shape).arch(arch);
        match self.mask {
            Mask::Full => problem,
            Mask::Causal => problem.causal(CausalAlignment::BottomRight),
            Mask::Window(Window { left, right }) => problem.window(left, right),
        }
    }

    /// Head dimensions.
    pub fn head_dim(&self) -> HeadDim {
        HeadDim {
            qk: self.shape.head_dim_qk,
            v: self.shape.head_dim_v,
        }
    }

    /// Query heads to a key/value head.
    pub fn group(&self) -> Group {
        Group(self.shape.heads_q / self.shape.heads_kv.max(1))
    }

    /// Floating-point operations as FlashAttention counts them (`hopper/benchmark_attn.py`): 2 for each multiplication
    /// and addition of both products, over the keys that a query sees on average. Under a causal mask that is
    /// half the square exactly, whatever the diagonal.
    pub fn flops(&self) -> f64 {
        let s = &self.shape;
        let (queries, keys) = (s.seqlen_q as f64, s.seqlen_k as f64);
        let seen = match self.mask {
            Mask::Full => keys,
            Mask::Causal => ((keys - queries).max(0.0) + keys) / 2.0,
            Mask::Window(window) => {
                let row = |query: usize| {
                    let diagonal = query as f64 + keys - queries;
                    let side = |side: Option<u32>| side.map_or(f64::INFINITY, f64::from);
                    let first = (diagonal - side(window.left)).max(0.0);
                    let last = (diagonal + side(window.right)).min(keys - 1.0);
                    (last - first + 1.0).max(0.0)
                };
                (0..s.seqlen_q).map(row).sum::<f64>() / queries.max(1.0)
            }
        };
        let rows = s.batch as f64 * s.heads_q as f64 * queries;
        2.0 * rows * seen * (s.head_dim_qk + s.head_dim_v) as f64
    }

    /// Bytes that must move at least: each input read once, the output written once. `None` past 64 bits.
    pub fn bytes(&self) -> Option<u64> {
        let problem = self.problem(ArchChoice::Auto);
        let inputs = [&problem.q, &problem.k, &problem.v].map(|input| (input, self.dtype));
        // Latent values are the keys.
        let inputs = match self.cache {
            Cache::Latent(_) => &inputs[..2],
            _ => &inputs[..],
        };
        let out = [(&problem.out, problem.out_element())];
        let tensors = inputs.iter().copied().chain(out);
        tensors.into_iter().try_fold(0u64, |sum, (tensor, dtype)| {
            let elements: u64 = tensor.elements()?.try_into().ok()?;
            sum.checked_add(elements.checked_mul(u64::from(dtype.bytes()))?)
        })
    }

    /// Floating-point operations to a byte that must move.
    pub fn intensity(&self) -> f64 {
        self.flops() / self.bytes().unwrap_or(u64::MAX).max(1) as f64
    }

    /// The keys that a query sees: with these masks, all between the first and the last.
    pub(crate) fn seen(&self, query: usize) -> std::ops::Range<usize> {
        let problem = self.problem(ArchChoice::Auto);
        let sees = |key: &usize| visible(&problem, query, *key);
        let mut keys = (0..self.shape.seqlen_k).filter(sees);
        let Some(first) = keys.next() else {
            return 0..0;
        };
        first..keys.next_back().unwrap_or(first) + 1
    }
}

/// Element types of the fused kernels, in the order in which they are measured: bf16, the one that others publish, first.
pub fn dtypes() -> Vec<DType> {
    let mut dtypes = Vec::new();
    for variant in variants()
        .iter()
        .filter(|variant| variant.algorithm == Algorithm::Fused)
    {
        let dtype = variant.tile.dtype;
        if !dtypes.contains(&dtype) {
            dtypes.push(dtype);
        }
    }
    dtypes.sort_by_key(|&dtype| dtype != DType::Bf16);
    dtypes
}

/// The element type of that name.
///
/// # Errors
/// The names there are.
pub fn dtype(name: &str) -> Result<DType, String> {
    let known = dtypes();
    let found = known.iter().find(|dtype| dtype.as_str() == name).copied();
    found.ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|dtype| dtype.as_str()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(queries: usize, keys: usize, mask: Mask) -> Cell {
        let shape = Shape {
            batch: 2,
            seqlen_q: queries,
            seqlen_k: keys,
            heads_q: 4,
            heads_kv: 2,
            head_dim_qk: 24,
            head_dim_v: 16,
        };
        Cell {
            dtype: DType::F16,
            shape,
            mask,
            cache: Cache::Dense,
        }
    }

    fn windows() -> impl Iterator<Item = Window> {
        let sides = [None, Some(0), Some(3), Some(100)];
        let pairs = sides.into_iter().flat_map(move |l| sides.map(|r| (l, r)));
        pairs.map(|(left, right)| Window { left, right })
    }

    #[test]
    fn operations_are_those_of_the_pairs_in_sight() {
        let masks = [Mask::Full, Mask::Causal];
        for mask in masks.into_iter().chain(windows().map(Mask::Window)) {
            for (queries, keys) in [(5, 5), (1, 9), (7, 20), (20, 7)] {
                let cell = cell(queries, keys, mask);
                let problem = cell.problem(ArchChoice::Auto);
                let seen =
                    |query: usize| (0..keys).filter(move |&key| visible(&problem, query, key));
                let pairs: usize = (0..queries).map(|query| seen(query).count()).sum();
                // 2 batches, 4 heads, a multiplication and an addition for each element of 24 and 16.
                let exact = (2 * 4 * pairs * 2 * (24 + 16)) as f64;
                match mask {
                    // Half the square, where half of the diagonal would count.
                    Mask::Causal if queries <= keys => {
                        let diagonal = (2 * 4 * queries * 2 * (24 + 16)) as f64 / 2.0;
                        assert_eq!(cell.flops(), exact - diagonal, "{cell}");
                    }
                    // More queries than keys: FlashAttention counts half of all pairs.
                    Mask::Causal => assert!(cell.flops() >= exact, "{cell}"),
                    _ => assert_eq!(cell.flops(), exact, "{cell}"),
                }
                for query in 0..queries {
                    assert!(cell.seen(query).eq(seen(query)), "{cell}: {query}");
                }
            }
        }
    }

    #[test]
    fn bytes_are_those_of_the_tensors() {
        // q, k, v, out.
        let elements = 2 * (5 * 4 * 24 + 9 * 2 * 24 + 9 * 2 * 16 + 5 * 4 * 16);
        let cell = cell(5, 9, Mask::Full);
        assert_eq!(cell.bytes(), Some(elements * 2));
        assert_eq!(cell.intensity(), cell.flops() / (elements * 2) as f64);
        let mut endless = cell;
        endless.shape.seqlen_k = usize::MAX;
        assert_eq!(endless.bytes(), None);
        assert!(endless.intensity().is_finite());
    }

    #[test]
    fn names() {
        assert_eq!("mha".parse(), Ok(Group(1)));
        assert_eq!("gqa8".parse(), Ok(Group(8)));
        for bad in ["", "gqa", "gqa0", "mqa", "gqa-1", "gqa1025"] {
            assert!(bad.parse::<Group>().is_err(), "{bad}");
        }
        assert_eq!("64".parse(), Ok(HeadDim::from(64)));
        assert_eq!("192/128".parse(), Ok(HeadDim { qk: 192, v: 128 }));
        assert_eq!(HeadDim { qk: 192, v: 128 }.to_string(), "192/128");
        for bad in ["", "0", "64/", "/64", "64/0", "1/2/3", "-1"] {
            assert!(bad.parse::<HeadDim>().is_err(), "{bad}");
        }
        for cache in [
            Cache::Dense,
            Cache::Packed,
            Cache::Pages(1),
            Cache::Latent(64),
        ] {
            assert_eq!(cache.to_string().parse(), Ok(cache));
        }
        for bad in ["", "pages", "pages0", "pagesx", "paged16", "latent-1"] {
            assert!(bad.parse::<Cache>().is_err(), "{bad}");
        }
        assert_eq!(dtypes()[0], DType::Bf16);
        for known in dtypes() {
            assert_eq!(dtype(known.as_str()), Ok(known));
        }
        assert!(dtype("f64").unwrap_err().contains("bf16"));
    }
}
