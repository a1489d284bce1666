//! The geometry of a launch: whether a device and the entry take it, and how its grid divides into clusters.

use crate::device::Launch;
use crate::error::LaunchError;
use crate::module::Entry;
use crate::parse::tree::Bounds;

/// Most blocks of a cluster on Hopper. (More than 8 need an attribute of the kernel.)
const MOST_BLOCKS: u64 = 16;

/// A legal geometry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    grid: [u64; 3],
    /// Blocks of a cluster, if the launch or the entry asks for clusters.
    pub(crate) cluster: Option<[u32; 3]>,
}

impl Geometry {
    pub(crate) fn new(
        entry: &Entry,
        bounds: &Bounds,
        launch: &Launch<'_>,
    ) -> Result<Self, LaunchError> {
        let bad = |reason: String| Err(LaunchError::BadGeometry { reason });
        let product = |of: [u32; 3]| {
            let of = of.map(u64::from);
            of.iter().fold(1u64, |a, &b| a.saturating_mul(b))
        };
        let threads = product(launch.block);
        let [x, y, z] = launch.block;
        if threads == 0 || threads > 1024 || z > 64 {
            return bad(format!("a block of {x} x {y} x {z} threads"));
        }
        if let Some(most) = entry.max_threads.map(product)
            && threads > most
        {
            return bad(format!(
                "a block of {threads} threads, but the entry allows {most}"
            ));
        }
        let [x, y, z] = launch.grid;
        let most = [i32::MAX as u32, 65535, 65535];
        if (0..3).any(|n| launch.grid[n] == 0 || launch.grid[n] > most[n]) {
            return bad(format!("a grid of {x} x {y} x {z} blocks"));
        }
        let cluster = launch.cluster.or(entry.cluster);
        let [cx, cy, cz] = cluster.unwrap_or([1; 3]);
        let blocks = product([cx, cy, cz]);
        if let (Some(asked), Some(required)) = (launch.cluster, entry.cluster)
            && asked != required
        {
            let [x, y, z] = required;
            return bad(format!(
                "a cluster of {cx} x {cy} x {cz} blocks, but the entry requires {x} x {y} x {z}"
            ));
        }
        if bounds.explicitcluster && cluster.is_none() {
            return bad("the entry must be launched with a cluster size".to_owned());
        }
        let most = bounds.maxclusterrank.map_or(MOST_BLOCKS, u64::from);
        if blocks == 0 || blocks > most.min(MOST_BLOCKS) {
            return bad(format!("a cluster of {cx} x {cy} x {cz} blocks"));
        }
        if x % cx != 0 || y % cy != 0 || z % cz != 0 {
            return bad(format!(
                "clusters of {cx} x {cy} x {cz} blocks do not divide a grid of {x} x {y} x {z}"
            ));
        }
        Ok(Geometry {
            grid: launch.grid.map(u64::from),
            cluster,
        })
    }

    /// Clusters in each dimension.
    fn grid_of_clusters(&self) -> [u64; 3] {
        let cluster = self.cluster.unwrap_or([1; 3]).map(u64::from);
        std::array::from_fn(|n| self.grid[n] / cluster[n])
    }

    /// Clusters of the grid.
    pub(crate) fn clusters(&self) -> u64 {
        self.grid_of_clusters().iter().product()
    }

    /// The place of a cluster among the clusters of the grid.
    pub(crate) fn place(&self, linear: u64) -> [u32; 3] {
        let [x, y, _] = self.grid_of_clusters();
        [linear % x, linear / x % y, linear / x / y].map(|n| n as u32)
    }

    /// The cluster of a block.
    pub(crate) fn cluster_of(&self, block: u64) -> u64 {
        let ([gx, gy, _], [x, y, _]) = (self.grid, self.grid_of_clusters());
        let [cx, cy, cz] = self.cluster.unwrap_or([1; 3]).map(u64::from);
        let place = [block % gx / cx, block / gx % gy / cy, block / gx / gy / cz];
        place[0] + x * (place[1] + y * place[2])
    }
}
