//! What several ranks refuse, and what becomes of those whose peers fail.

use flashtile::{
    CausalAlignment, DType, Device, DeviceBuffer, DeviceInfo, Error, ErrorClass, Pointers, Problem,
    Result, Shape, Stream, TensorLayout,
    parallel::{
        Circulation, ContextParallel, ContextParallelPlan, Exchange, KeyParallel,
        ServingKeyParallel, Sharding, Shards, Streams,
    },
    serving::{CacheLayout, ServingPointers, ServingProblem},
};
use flashtile_tests::ranks::{lend, ranks};

const WORLD: usize = 3;
const TOKENS: usize = 24;

fn shards(sharding: Sharding) -> Shards {
    Shards::even(sharding, WORLD, TOKENS).unwrap()
}

fn problem(tokens: usize) -> Problem {
    let shape = Shape {
        batch: 1,
        seqlen_q: tokens,
        seqlen_k: tokens,
        heads_q: 2,
        heads_kv: 1,
        head_dim_qk: 32,
        head_dim_v: 32,
    };
    Problem::contiguous(DType::F16, shape).causal(CausalAlignment::BottomRight)
}

fn ring() -> ContextParallel {
    let shards = shards(Sharding::Contiguous);
    ContextParallel::new(
        problem(TOKENS / WORLD),
        shards.clone(),
        shards,
        Circulation::Ring,
    )
}

/// The argument that is refused.
fn refused<T: std::fmt::Debug>(result: Result<T>) -> &'static str {
    match result {
        Err(Error::BadInput { argument, .. }) => argument,
        other => panic!("{other:?}"),
    }
}

#[test]
fn problems_that_no_rank_can_plan() {
    let device = DeviceInfo::emulator();
    let plan = |change: &dyn Fn(&mut ContextParallel)| {
        let mut parallel = ring();
        change(&mut parallel);
        parallel.plan(&device, 1)
    };
    assert!(plan(&|_| {}).is_ok());
    assert_eq!(refused(ring().plan(&device, WORLD)), "rank");
    let other = Shards::even(Sharding::Contiguous, WORLD + 1, TOKENS).unwrap();
    assert_eq!(refused(plan(&|it| it.queries = other.clone())), "queries");
    let longer = Shards::even(Sharding::Contiguous, WORLD, 2 * TOKENS).unwrap();
    assert_eq!(refused(plan(&|it| it.queries = longer.clone())), "q");
    assert_eq!(refused(plan(&|it| it.keys = longer.clone())), "k");
    assert_eq!(refused(plan(&|it| it.problem.dtype = DType::E4m3)), "dtype");
    assert_eq!(
        refused(plan(&|it| it.problem.scale = Some(f32::NAN))),
        "scale"
    );
    // Keys that do not lie together.
    for which in [0, 1] {
        let changed = plan(&|it| {
            let layout = [&mut it.problem.k, &mut it.problem.v]
                .into_iter()
                .nth(which);
            if let Some(layout) = layout {
                layout.strides[1] += 8;
            }
        });
        assert_eq!(refused(changed), ["k", "v"][which]);
    }
    // Stripes on one side are no band, but without a mask that does not matter.
    for side in [0, 1] {
        let stripe = |it: &mut ContextParallel| match side {
            0 => it.queries = shards(Sharding::Striped),
            _ => it.keys = shards(Sharding::Striped),
        };
        assert_eq!(refused(plan(&stripe)), "keys");
        let unmasked = plan(&|it| {
            stripe(it);
            it.problem.causal = None;
        });
        assert!(unmasked.is_ok());
    }
    let gathered = plan(&|it| {
        it.queries = shards(Sharding::Striped);
        it.keys = shards(Sharding::Striped);
        it.circulation = Circulation::AllGather;
    });
    assert_eq!(refused(gathered), "keys");

    let keys = |sharding, queries| {
        let mut problem = problem(TOKENS / WORLD);
        problem.q = TensorLayout::contiguous([1, queries, 2, 32]);
        problem.out = problem.q;
        KeyParallel::new(problem, shards(sharding)).plan(&device, 0)
    };
    assert!(keys(Sharding::Zigzag, 5).is_ok());
    assert!(keys(Sharding::Striped, 1).is_ok());
    assert_eq!(refused(keys(Sharding::Striped, 2)), "keys");
}

/// Masks of whole sequences, of which a rank's cache is a part.
#[test]
fn caches_whose_masks_need_positions() {
    let device = DeviceInfo::emulator();
    let plan = |queries, change: &dyn Fn(ServingProblem) -> ServingProblem| {
        let cache = CacheLayout::contiguous([2, 40, 1, 64]);
        let q = TensorLayout::contiguous([2, queries, 4, 64]);
        let problem = ServingProblem::new(DType::Bf16, 2, q, cache, cache).k_used(40);
        ServingKeyParallel::new(change(problem), WORLD).plan(&device, 0)
    };
    assert!(plan(3, &|it| it).is_ok());
    assert!(plan(1, &|it| it.causal(CausalAlignment::BottomRight)).is_ok());
    let refused =
        |queries, change: &dyn Fn(ServingProblem) -> ServingProblem| refused(plan(queries, change));
    assert_eq!(
        refused(2, &|it| it.causal(CausalAlignment::BottomRight)),
        "causal"
    );
    assert_eq!(
        refused(1, &|it| it.causal(CausalAlignment::TopLeft)),
        "causal"
    );
    assert_eq!(refused(1, &|it| it.window(Some(3), None)), "window");
    assert_eq!(refused(1, &|it| it.alibi(false)), "alibi");
    assert_eq!(refused(1, &|it| it.ranges(1)), "ranges");
    let problem = ServingKeyParallel::new(plan(1, &|it| it).unwrap().problem().to_owned(), 0);
    assert!(problem.plan(&device, 0).is_err());
}

/// A rank's tensors, all zeros.
struct Tensors<'d>([DeviceBuffer<'d>; 5]);

impl<'d> Tensors<'d> {
    fn new(device: &'d dyn Device, plan: &ContextParallelPlan) -> Self {
        let problem = &plan.problem().problem;
        let layouts = [problem.q, problem.k, problem.v, problem.out];
        let [q, k, v, out] = layouts.map(|it| DeviceBuffer::zeroed(device, 2 * it.span().unwrap()));
        let workspace = DeviceBuffer::uninitialized(device, plan.workspace_bytes());
        Self([q, k, v, out, workspace].map(Result::unwrap))
    }

    fn pointers(&self) -> Pointers {
        let [q, k, v, out, workspace] = self.0.each_ref().map(DeviceBuffer::address);
        Pointers {
            q,
            k,
            v,
            out,
            workspace,
            ..Pointers::default()
        }
    }
}

fn launch(
    plan: &ContextParallelPlan,
    device: &dyn Device,
    exchange: &dyn Exchange,
    pointers: &Pointers,
) -> Result<()> {
    let streams = Streams::one(Stream::DEFAULT);
    // SAFETY: the emulator checks every access.
    unsafe { plan.launch(device, exchange, streams, pointers) }
}

/// Addresses that are none are refused before anything is sent; an exchange of other ranks, too.
#[test]
fn bad_addresses_are_refused_before_anything_is_sent() {
    let Some(devices) = lend(WORLD) else {
        return;
    };
    let results = ranks(&devices, |rank, device, exchange| {
        let plan = ring().plan(device.info(), rank).unwrap();
        let tensors = Tensors::new(device, &plan);
        let sound = tensors.pointers();
        let mut found = Vec::new();
        for pointers in [
            Pointers { q: 0, ..sound },
            Pointers { k: 0, ..sound },
            Pointers {
                v: sound.v + 1,
                ..sound
            },
            Pointers { out: 0, ..sound },
            Pointers {
                lse: Some(sound.out),
                ..sound
            },
            Pointers {
                workspace: sound.workspace + 16,
                ..sound
            },
            Pointers {
                workspace: 0,
                ..sound
            },
            Pointers {
                k_scale: sound.k,
                ..sound
            },
        ] {
            found.push(refused(launch(&plan, device, &exchange, &pointers)));
        }
        let other = ring().plan(device.info(), (rank + 1) % WORLD).unwrap();
        found.push(refused(launch(&other, device, &exchange, &sound)));
        // Nothing was sent, so all is well.
        launch(&plan, device, &exchange, &sound).unwrap();
        found
    });
    for found in results {
        let expected = [
            "q",
            "k",
            "v",
            "out",
            "lse",
            "workspace",
            "workspace",
            "k_scale",
            "exchange",
        ];
        assert_eq!(found, expected);
    }
}

/// All ranks see that one plans something else, and which.
#[test]
fn ranks_that_plan_different_things_see_it() {
    let Some(devices) = lend(WORLD) else {
        return;
    };
    let agree = |change: &(dyn Fn(&mut ContextParallel) + Sync)| {
        ranks(&devices, |rank, device, exchange| {
            let mut parallel = ring();
            if rank == 1 {
                change(&mut parallel);
            }
            let plan = parallel.plan(device.info(), rank).unwrap();
            // SAFETY: the emulator has no streams.
            unsafe { plan.agree(device, &exchange, Stream::DEFAULT) }
        })
    };
    assert!(agree(&|_| {}).iter().all(Result::is_ok));
    // A rank's own strides and its output's type are its own business.
    let own = agree(&|it| {
        it.problem.q = TensorLayout::heads_first(it.problem.q.shape);
        it.problem.lse = true;
    });
    assert!(own.iter().all(Result::is_ok));
    for change in [
        (&|it: &mut ContextParallel| it.problem.causal = None)
            as &(dyn Fn(&mut ContextParallel) + Sync),
        &|it| it.problem.scale = Some(2.0),
        &|it| it.circulation = Circulation::AllGather,
        &|it| it.problem.dtype = DType::Bf16,
        &|it| it.queries = Shards::contiguous(&[7, 8, 9]).unwrap(),
    ] {
        for (rank, result) in agree(change).into_iter().enumerate() {
            let Err(Error::BadInput {
                argument, found, ..
            }) = result
            else {
                panic!("rank {rank}: {result:?}");
            };
            assert_eq!(argument, "exchange");
            let other = if rank == 1 { 0 } else { 1 };
            assert!(found.contains(&format!("rank {other} ")), "{found}");
        }
    }
}

/// So do ranks whose queries are not split.
#[test]
fn ranks_that_share_queries_see_it_too() {
    let Some(devices) = lend(WORLD) else {
        return;
    };
    for differs in [false, true] {
        let results = ranks(&devices, |rank, device, exchange| {
            let is_other = differs && rank == 2;
            let scale = if is_other { 0.5 } else { 0.25 };
            let tokens = TOKENS / WORLD;
            let dense = KeyParallel::new(problem(tokens).scale(scale), shards(Sharding::Zigzag));
            let dense = dense.plan(device.info(), rank)?;
            let cache = CacheLayout::contiguous([2, 8 + rank, 1, 64]);
            let q = TensorLayout::contiguous([2, 1, 4, 64]);
            let caches = ServingProblem::new(DType::Bf16, 2, q, cache, cache).sink(is_other);
            let caches = ServingKeyParallel::new(caches, WORLD).plan(device.info(), rank)?;
            // SAFETY: the emulator has no streams.
            let agreed = unsafe {
                [
                    dense.agree(device, &exchange, Stream::DEFAULT),
                    caches.agree(device, &exchange, Stream::DEFAULT),
                ]
            };
            Ok::<_, Error>(agreed)
        });
        for agreed in results.into_iter().flat_map(Result::unwrap) {
            match differs {
                true => assert_eq!(refused(agreed), "exchange"),
                false => assert!(agreed.is_ok(), "{agreed:?}"),
            }
        }
    }
}

/// Without sequences there is nothing to do, to send, or to have addresses for.
#[test]
fn no_sequences() {
    let Some(devices) = lend(WORLD) else {
        return;
    };
    let results = ranks(&devices, |rank, device, exchange| {
        for circulation in [Circulation::Ring, Circulation::AllGather] {
            let mut parallel = ring();
            parallel.circulation = circulation;
            for layout in [
                &mut parallel.problem.q,
                &mut parallel.problem.k,
                &mut parallel.problem.v,
                &mut parallel.problem.out,
            ] {
                layout.shape[0] = 0;
            }
            let plan = parallel.plan(device.info(), rank)?;
            assert_eq!(plan.workspace_bytes(), 0);
            launch(&plan, device, &exchange, &Pointers::default())?;
        }
        let cache = CacheLayout::contiguous([0, 8, 1, 64]);
        let q = TensorLayout::contiguous([0, 1, 4, 64]);
        let caches = ServingProblem::new(DType::Bf16, 0, q, cache, cache);
        let plan = ServingKeyParallel::new(caches, WORLD).plan(device.info(), rank)?;
        // SAFETY: there is nothing to be accessed.
        unsafe {
            plan.launch(
                device,
                &exchange,
                Stream::DEFAULT,
                &ServingPointers::default(),
            )
        }
    });
    for result in results {
        result.unwrap();
    }
}

/// A rank that does not come, and one whose keys have another length: errors, on all ranks that wait for it.
#[test]
fn a_peer_that_fails_is_an_error() {
    let Some(devices) = lend(WORLD) else {
        return;
    };
    for circulation in [Circulation::Ring, Circulation::AllGather] {
        let results = ranks(&devices, |rank, device, exchange| {
            if rank == 1 {
                return Ok(());
            }
            let mut parallel = ring();
            parallel.circulation = circulation;
            let plan = parallel.plan(device.info(), rank)?;
            let tensors = Tensors::new(device, &plan);
            launch(&plan, device, &exchange, &tensors.pointers())?;
            // Who noticed nothing is told at the next call.
            launch(&plan, device, &exchange, &tensors.pointers())
        });
        for rank in [0, 2] {
            let error = results[rank].clone().unwrap_err();
            assert_eq!(error.class(), ErrorClass::Driver);
            assert!(matches!(error, Error::Exchange { .. }), "{error}");
        }

        let results = ranks(&devices, |rank, device, exchange| {
            // Rank 1 believes that it has fewer keys.
            let tokens = if rank == 1 { [8, 7, 8] } else { [8; 3] };
            let queries = shards(Sharding::Contiguous);
            let keys = Shards::contiguous(&tokens)?;
            let mut problem = problem(queries.tokens(rank));
            problem.k.shape[1] = keys.tokens(rank);
            problem.v.shape[1] = keys.tokens(rank);
            let parallel = ContextParallel::new(problem, queries, keys, circulation);
            let plan = parallel.plan(device.info(), rank)?;
            let tensors = Tensors::new(device, &plan);
            launch(&plan, device, &exchange, &tensors.pointers())?;
            launch(&plan, device, &exchange, &tensors.pointers())
        });
        for (rank, result) in results.into_iter().enumerate() {
            assert!(
                matches!(result, Err(Error::Exchange { .. })),
                "rank {rank}: {result:?}"
            );
        }
    }
}
