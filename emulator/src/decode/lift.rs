//! Functions of one lane, made functions of a warp.

use crate::program::{CompareFn, Narrow, NarrowCompareFn, NarrowFn, WARP, Wide, WideFn};

pub(super) fn narrow1(f: impl Fn(u32) -> u32 + Send + Sync + 'static) -> NarrowFn {
    Box::new(move |d: &mut Narrow, a: &Narrow, _: &Narrow, _: &Narrow| {
        for lane in 0..WARP {
            d[lane] = f(a[lane]);
        }
    })
}

pub(super) fn narrow2(f: impl Fn(u32, u32) -> u32 + Send + Sync + 'static) -> NarrowFn {
    Box::new(move |d: &mut Narrow, a: &Narrow, b: &Narrow, _: &Narrow| {
        for lane in 0..WARP {
            d[lane] = f(a[lane], b[lane]);
        }
    })
}

pub(super) fn narrow3(f: impl Fn(u32, u32, u32) -> u32 + Send + Sync + 'static) -> NarrowFn {
    Box::new(move |d: &mut Narrow, a: &Narrow, b: &Narrow, c: &Narrow| {
        for lane in 0..WARP {
            d[lane] = f(a[lane], b[lane], c[lane]);
        }
    })
}

pub(super) fn wide1(f: impl Fn(u64) -> u64 + Send + Sync + 'static) -> WideFn {
    Box::new(move |d: &mut Wide, a: &Wide, _: &Wide, _: &Wide| {
        for lane in 0..WARP {
            d[lane] = f(a[lane]);
        }
    })
}

pub(super) fn wide2(f: impl Fn(u64, u64) -> u64 + Send + Sync + 'static) -> WideFn {
    Box::new(move |d: &mut Wide, a: &Wide, b: &Wide, _: &Wide| {
        for lane in 0..WARP {
            d[lane] = f(a[lane], b[lane]);
        }
    })
}

pub(super) fn wide3(f: impl Fn(u64, u64, u64) -> u64 + Send + Sync + 'static) -> WideFn {
    Box::new(move |d: &mut Wide, a: &Wide, b: &Wide, c: &Wide| {
        for lane in 0..WARP {
            d[lane] = f(a[lane], b[lane], c[lane]);
        }
    })
}

pub(super) fn compare_narrow(
    f: impl Fn(u32, u32) -> bool + Send + Sync + 'static,
) -> NarrowCompareFn {
    Box::new(move |a: &Narrow, b: &Narrow| {
        let mut mask = 0;
        for lane in 0..WARP {
            mask |= u32::from(f(a[lane], b[lane])) << lane;
        }
        mask
    })
}

pub(super) fn compare_wide(f: impl Fn(u64, u64) -> bool + Send + Sync + 'static) -> CompareFn {
    Box::new(move |a: &Wide, b: &Wide| {
        let mut mask = 0;
        for lane in 0..WARP {
            mask |= u32::from(f(a[lane], b[lane])) << lane;
        }
        mask
    })
}
