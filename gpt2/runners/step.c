/* The token step of GPT-2, fused: embedding, blocks, last norm and head in one call, for x86-64 with AVX-512.

   It reads N tokens, each with its slot and position, writes their keys and values, and gives logits for some of them.
   A prompt in pieces, one row and many rows are the same call. The weights come from memory once per call, and
   everything between two matrices stays in the processor's caches.

   Batch invariance. Every number is computed in an order that depends on the model alone: a matrix's outputs are
   summed over its inputs from first to last, whatever the number of rows. A token's logits are therefore the same, bit
   for bit, whatever is read beside it. The threads share work by columns and heads, and never share a sum. (Tokens of one
   text are attended in tiles: a value that is not finite spoils up to five tokens before it. Such a text is lost anyway.)

   Widths. float32 reads the checkpoint as it lies, (in, out). bfloat16, int8 and int4 are packed in panels of 64
   outputs: pairs, fours or groups of 32 inputs side by side, as the dot-product instructions want them. Integer weights
   meet activations of 8 bits with a scale for every 64 (int8) or 32 (int4) of them, so that one large number costs its
   neighbours alone.

   Waiting. Threads that have nothing to do spin for a moment and then sleep, so that a busy neighbour costs a share of
   the time and not all of it. Work is handed out in small pieces: a thread that was pushed aside holds up one piece.

   This file includes itself twice, with and without the bfloat16 instructions. Python's side is native.py. */

#ifndef BODY

#define _GNU_SOURCE
#include <immintrin.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

enum { FLOAT32, BFLOAT16, INT8, INT4 };
enum { GELU_TANH, GELU_ERF, RELU, SILU };
enum { PANEL = 64, GROUP = 32, TILE = 6, QUERIES = 6, MOST_THREADS = 64, STRETCH = 4096,
       AHEAD = 2048, /* bytes that are asked for ahead of what is read */
       GAP = 16 };   /* how many times longer threads spin between steps, where Python draws tokens, than within one */

typedef struct {
    const void *weight;  /* (in, out) float32; otherwise packed panels */
    const void *scale;   /* int8: float32 (out); int4: float16, in panels (in / 32, 64) */
    const float *bias;   /* (out), or NULL */
    int32_t n_in, n_out;
} Matrix;

typedef struct {
    const float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias;
    Matrix attn, attn_proj, fc, mlp_proj;
    double attn_scale;
} Layer;

typedef struct {
    int32_t width, head_width, cache_width; /* of the blocks' matrices, of the head and embedding, of keys and values */
    int32_t n_layer, n_head, head_dim, n_embd, n_inner, vocab, activation, slots, capacity;
    double epsilon;
    Matrix head; /* float32: the embedding (vocab, n_embd) as it lies; otherwise packed as (n_embd, vocab) */
    const float *positions, *norm_weight, *norm_bias;
    const Layer *layers;
    char *keys, *values; /* (layer, slot, head) blocks, laid out as `keep` writes them */
} Model;

/* ---- threads ---- */

typedef struct {
    int threads, spins;
    atomic_int *next; /* one counter of handed-out pieces for each phase */
    atomic_int arrived, turn, sleepers;
} Team;

static void nap(atomic_int *word, int value, atomic_int *sleepers) {
    atomic_fetch_add(sleepers, 1);
#ifdef __linux__
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
#else
    if (atomic_load(word) == value) sched_yield();
#endif
    atomic_fetch_sub(sleepers, 1);
}

static void await_change(atomic_int *word, int value, int spins, atomic_int *sleepers) {
    for (int spin = 0; atomic_load_explicit(word, memory_order_acquire) == value; spin++) {
        if (spin < spins) _mm_pause();
        else nap(word, value, sleepers);
    }
}

static void announce(atomic_int *word, atomic_int *sleepers) {
    atomic_fetch_add(word, 1);
#ifdef __linux__
    if (atomic_load(sleepers)) syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1 << 30, NULL, NULL, 0);
#else
    (void)sleepers;
#endif
}

static void meet(Team *team) {
    if (team->threads == 1) return;
    int turn = atomic_load(&team->turn);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == team->threads) {
        atomic_store(&team->arrived, 0);
        announce(&team->turn, &team->sleepers);
    } else {
        await_change(&team->turn, turn, team->spins, &team->sleepers);
    }
}

typedef void (*Job)(void *job, Team *team, int thread);

static struct {
    pthread_mutex_t busy;
    Team team;
    atomic_int start, sleepers, done, done_sleepers;
    int workers, capacity, watched;
    char *memory; /* a step's working memory, kept from call to call */
    size_t memory_size;
    int begins[MOST_THREADS]; /* the value of `start` when each worker was made */
    Job run;
    void *job;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER};

static void *work(void *number) {
    int thread = (int)(intptr_t)number;
    unsigned seen = pool.begins[thread];
    for (;; seen++) {
        await_change(&pool.start, (int)seen, GAP * pool.team.spins, &pool.sleepers);
        if (thread < pool.team.threads) pool.run(pool.job, &pool.team, thread);
        announce(&pool.done, &pool.done_sleepers);
    }
    return NULL;
}

static void *memory_of(size_t size) {
    if (size > pool.memory_size) {
        free(pool.memory);
        pool.memory = aligned_alloc(64, size);
        pool.memory_size = pool.memory ? size : 0;
    }
    return pool.memory;
}

static void after_fork(void) { /* a child has none of its parent's threads */
    pthread_mutex_init(&pool.busy, NULL);
    pool.workers = 0;
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.done_sleepers, 0);
}

/* Runs a job on so many threads, this one among them (fewer where the system gives no more). The caller holds the
   pool. Returns 0, or 1 where there is no memory. */
static int together(int threads, int spins, int phases, Job run, void *job) {
    if (!pool.watched) pool.watched = !pthread_atfork(NULL, NULL, after_fork);
    if (phases > pool.capacity) {
        atomic_int *grown = realloc(pool.team.next, phases * sizeof(atomic_int));
        if (!grown) return 1;
        pool.team.next = grown;
        pool.capacity = phases;
    }
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    for (pthread_t thread; pool.workers < threads - 1; pool.workers++) {
        pool.begins[pool.workers + 1] = atomic_load(&pool.start);
        if (pthread_create(&thread, NULL, work, (void *)(intptr_t)(pool.workers + 1))) break;
        pthread_detach(thread);
    }
    pool.team.threads = threads <= pool.workers + 1 ? threads : pool.workers + 1;
    pool.team.spins = spins;
    for (int phase = 0; phase < phases; phase++) atomic_store(&pool.team.next[phase], 0);
    atomic_store(&pool.team.arrived, 0);
    atomic_store(&pool.done, 0);
    pool.run = run;
    pool.job = job;
    if (pool.workers) announce(&pool.start, &pool.sleepers);
    run(job, &pool.team, 0);
    for (int done; (done = atomic_load(&pool.done)) < pool.workers;)
        await_change(&pool.done, done, spins, &pool.done_sleepers);
    return 0;
}

static inline int next_piece(Team *team, int phase) {
    return atomic_fetch_add_explicit(&team->next[phase], 1, memory_order_relaxed);
}

/* ---- one step's memory ---- */

/* Prepared activations, as the dot-product instructions want them: float32 numbers, pairs of bfloat16, or fours of bytes.
   Rows stand in tiles of `by` rows, interleaved, so that a tile is read from one place: (rows / by, units, by). Bytes
   have a scale for each group, and what the group's integer sums begin with: weights are stored with 8 (int4) or 128
   (int8) added, which the sum of the group's bytes takes off again. */
typedef struct {
    char *data;
    float *scales;
    int32_t *sums;
    size_t row_size;
    int most_groups, by;
} Rows;

typedef struct {
    const Model *model;
    int tokens, wanted;
    const int32_t *ids, *slots, *places, *wants; /* (tokens) three times; (wanted) indices of tokens, rising */
    float *logits;                               /* (wanted, vocab) */
    float *x, *mix, *inner;                      /* (tokens, n_embd): residual; q, then attention's output; (tokens, n_inner) */
    float *q;
    char *rows; /* prepared activations: of all tokens, or of few for each thread */
    float *scales;
    int32_t *sums;
    size_t row_size;
    int most_groups;
    float *scores; /* for each thread (QUERIES, capacity) */
    int32_t (*tiles)[2];
    int n_tiles;
} Step;

typedef struct {
    enum { STORE, ACTIVATE, ADD, QKV } kind;
    float *out;
    int width; /* of a row of `out` */
    int layer;
} Sink;

#define BODY
#define TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,fma"
#define NAME(name) name##_bf16
#define HAS_BF16 1
#include "step.c"
#undef TARGET
#undef NAME
#undef HAS_BF16
#define TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma"
#define NAME(name) name##_vnni
#define HAS_BF16 0
#include "step.c"

int gpt2_without_bf16 = 0; /* for tests: as on a processor that lacks them */

static int has_bf16(void) { return !gpt2_without_bf16 && __builtin_cpu_supports("avx512bf16"); }

/* What this processor can run: 0 nothing, 1 everything, 2 everything with bfloat16 instructions. */
int gpt2_level(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vnni") || !__builtin_cpu_supports("fma"))
        return 0;
    return has_bf16() ? 2 : 1;
}

/* Sizes of C's structures, so that Python's copies of them can be checked. */
int gpt2_sizes(int which) { return which == 0 ? sizeof(Matrix) : which == 1 ? sizeof(Layer) : sizeof(Model); }

static size_t up(size_t size) { return (size + 63) / 64 * 64; }

/* Reads tokens; see the top. Those of one slot stand together and have rising places. Returns 0, or 1 without memory. */
int gpt2_step(const Model *m, int tokens, const int32_t *ids, const int32_t *slots, const int32_t *places, int wanted,
              const int32_t *wants, float *logits, int threads, int spins) {
    Step s = {.model = m, .tokens = tokens, .wanted = wanted, .ids = ids, .slots = slots,
              .places = places, .wants = wants, .logits = logits};
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    int widest = m->n_inner > m->n_embd ? m->n_inner : m->n_embd;
    s.row_size = (size_t)4 * widest, s.most_groups = widest / GROUP;
    size_t rows = (tokens > 2 * threads ? tokens : 2 * threads) + TILE;
    size_t sizes[] = {up((size_t)4 * tokens * m->n_embd), up((size_t)4 * tokens * m->n_embd),
                      up((size_t)4 * tokens * m->n_embd), up((size_t)4 * tokens * m->n_inner), up(rows * s.row_size),
                      up((size_t)4 * threads * QUERIES * m->capacity), up((size_t)8 * tokens),
                      up((size_t)4 * rows * s.most_groups), up((size_t)4 * rows * s.most_groups)};
    size_t total = 0;
    for (int i = 0; i < 9; i++) total += sizes[i];
    pthread_mutex_lock(&pool.busy);
    char *memory = memory_of(total), *at[9];
    if (!memory) {
        pthread_mutex_unlock(&pool.busy);
        return 1;
    }
    at[0] = memory;
    for (int i = 1; i < 9; i++) at[i] = at[i - 1] + sizes[i - 1];
    s.x = (float *)at[0], s.mix = (float *)at[1], s.q = (float *)at[2], s.inner = (float *)at[3];
    s.rows = at[4], s.scores = (float *)at[5], s.tiles = (int32_t (*)[2])at[6];
    s.scales = (float *)at[7], s.sums = (int32_t *)at[8];
    for (int token = 0, count; token < tokens; token += count) {
        for (count = 1; count < QUERIES && token + count < tokens && slots[token + count] == slots[token]; count++) {}
        s.tiles[s.n_tiles][0] = token, s.tiles[s.n_tiles++][1] = count;
    }
    int failed = together(threads, spins, 9 * m->n_layer + 3, has_bf16() ? run_bf16 : run_vnni, &s);
    pthread_mutex_unlock(&pool.busy);
    return failed;
}

/* ---- small services ---- */

typedef struct {
    const char *data;
    size_t size;
    int64_t sum;
} Reading;

__attribute__((target("avx512f"))) static void read_all(void *job, Team *team, int thread) {
    Reading *r = job;
    (void)thread;
    const size_t piece = 1 << 18;
    __m512i sums[8];
    for (int j = 0; j < 8; j++) sums[j] = _mm512_setzero_si512();
    for (size_t begin; (begin = next_piece(team, 0) * piece) < r->size;) {
        size_t end = begin + piece < r->size ? begin + piece : r->size;
        for (size_t i = begin; i + 512 <= end; i += 512)
            for (int j = 0; j < 8; j++) sums[j] = _mm512_add_epi64(sums[j], _mm512_loadu_si512(r->data + i + 64 * j));
    }
    for (int j = 1; j < 8; j++) sums[0] = _mm512_add_epi64(sums[0], sums[j]);
    __atomic_fetch_add(&r->sum, _mm512_reduce_add_epi64(sums[0]), __ATOMIC_RELAXED);
}

/* Seconds of one pass over a buffer, reading and nothing else. */
double gpt2_read_seconds(const char *data, size_t size, int threads, int spins) {
    Reading reading = {data, size, 0};
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    pthread_mutex_lock(&pool.busy);
    together(threads, spins, 1, read_all, &reading);
    pthread_mutex_unlock(&pool.busy);
    clock_gettime(CLOCK_MONOTONIC, &end);
    return end.tv_sec - begin.tv_sec + 1e-9 * (end.tv_nsec - begin.tv_nsec);
}

#else /* ---- BODY: once for each set of instructions ---- */

#define FN(name) __attribute__((target(TARGET))) static NAME(name)
#define EACH(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < n; i++) /* a constant number of registers */
#define INLINE __attribute__((target(TARGET), always_inline)) static inline

/* acc + the products of 16 pairs of bfloat16 and one pair that meets them all (its 32 bits in each lane of `pair`). */
INLINE __m512 NAME(dot2)(__m512 acc, __m512i w, __m512i pair) {
#if HAS_BF16
    return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)pair);
#else
    const __m512i odd = _mm512_set1_epi32((int)0xffff0000);
    acc = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)), acc);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(w, odd)), _mm512_castsi512_ps(_mm512_and_si512(pair, odd)), acc);
#endif
}

INLINE __m256i NAME(narrow)(__m512 x) { /* to bfloat16, to nearest even */
#if HAS_BF16
    return (__m256i)_mm512_cvtneps_pbh(x);
#else
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
#endif
}

INLINE __m512 NAME(widen)(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

/* e^x within 2 ulp: 2^n times a polynomial of the rest (Cephes' coefficients for expf). */
INLINE __m512 NAME(exp)(__m512 x) {
    /* min and max hand on their second argument where one is NaN, so NaN comes out as NaN. */
    x = _mm512_max_ps(_mm512_set1_ps(-103.0f), _mm512_min_ps(_mm512_set1_ps(89.0f), x));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(r, r), p, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

INLINE __m512 NAME(activate)(__m512 x, int kind) {
    const __m512 one = _mm512_set1_ps(1.0f);
    if (kind == RELU) return _mm512_max_ps(_mm512_setzero_ps(), x);
    if (kind == GELU_ERF) { /* erf by Abramowitz and Stegun 7.1.26, within 1.5e-7 */
        __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
        __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
        __m512 p = _mm512_set1_ps(1.061405429f);
        p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
        p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
        p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
        p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
        __m512 tail = _mm512_mul_ps(_mm512_mul_ps(p, t), NAME(exp)(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(z, z))));
        /* x Phi(x): for x > 0 it is x (1 - tail / 2), otherwise x tail / 2 */
        __m512 half = _mm512_mul_ps(_mm512_set1_ps(0.5f), tail);
        __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
        return _mm512_mul_ps(x, _mm512_mask_sub_ps(half, positive, one, half));
    }
    __m512 u = x;
    if (kind == GELU_TANH) { /* x (1 + tanh u) / 2 = x / (1 + e^(-2u)) */
        __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
        u = _mm512_mul_ps(_mm512_set1_ps(1.59576912f), _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x));
    }
    return _mm512_div_ps(x, _mm512_add_ps(one, NAME(exp)(_mm512_sub_ps(_mm512_setzero_ps(), u))));
}

/* ---- activations, as each width wants them ---- */

FN(void prepare)(const float *x, int n, int width, const Rows *rows, int row) {
    const int by = rows->by;
    int32_t *data = (int32_t *)(rows->data + (size_t)(row / by) * by * rows->row_size);
    if (width == FLOAT32) {
        data += row % by;
        if (by == 1) memcpy(data, x, (size_t)4 * n);
        else for (int i = 0; i < n; i++) memcpy(data + (size_t)i * by, x + i, 4);
    } else if (width == BFLOAT16) {
        data += row % by;
        for (int i = 0; i < n; i += 16) {
            int32_t pairs[8];
            _mm256_storeu_si256((__m256i *)pairs, NAME(narrow)(_mm512_loadu_ps(x + i)));
            for (int j = 0; j < 8; j++) data[(size_t)(i / 2 + j) * by] = pairs[j];
        }
    } else {
        data += row % by;
        const int group = width == INT8 ? 64 : 32, offset = width == INT8 ? -128 : -8;
        float *scales = rows->scales + (size_t)row * rows->most_groups;
        int32_t *sums = rows->sums + (size_t)row * rows->most_groups;
        for (int begin = 0; begin < n; begin += group, scales++, sums++) {
            __m512 highest = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
            for (int i = begin; i < begin + group; i += 16) {
                const __m512 v = _mm512_loadu_ps(x + i);
                highest = _mm512_max_ps(highest, _mm512_abs_ps(v));
                odd = _mm512_fmadd_ps(v, _mm512_setzero_ps(), odd); /* 0, or NaN if any is infinite or NaN */
            }
            const float most = _mm512_reduce_max_ps(highest);
            float to = 127.0f / most;
            if (!isfinite(to)) to = 0.0f; /* a group of numbers below 1e-36 counts as zero */
            __mmask16 spoilt = _mm512_cmp_ps_mask(odd, odd, _CMP_UNORD_Q);
            *scales = spoilt ? NAN : to > 0 ? most / 127.0f : 0.0f;
            __m512i sum = _mm512_setzero_si512();
            for (int i = begin; i < begin + group; i += 16, data += (size_t)by * 4) {
                const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(to)));
                const __m128i bytes = _mm512_cvtepi32_epi8(q);
                sum = _mm512_add_epi32(sum, q);
                if (by == 1) {
                    _mm_storeu_si128((__m128i *)data, bytes);
                } else {
                    data[0] = _mm_extract_epi32(bytes, 0), data[by] = _mm_extract_epi32(bytes, 1);
                    data[2 * by] = _mm_extract_epi32(bytes, 2), data[3 * by] = _mm_extract_epi32(bytes, 3);
                }
            }
            *sums = offset * _mm512_reduce_add_epi32(sum);
        }
    }
}

FN(void norm)(const float *x, int n, const float *weight, const float *bias, float epsilon, float *out) {
    __m512 sum = _mm512_setzero_ps(), square = sum;
    for (int i = 0; i < n; i += 16) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + i));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / n);
    for (int i = 0; i < n; i += 16) {
        __m512 d = _mm512_sub_ps(_mm512_loadu_ps(x + i), mean);
        square = _mm512_fmadd_ps(d, d, square);
    }
    const __m512 factor = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(square) / n + epsilon));
    for (int i = 0; i < n; i += 16) {
        __m512 d = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + i), mean), factor);
        _mm512_storeu_ps(out + i, _mm512_fmadd_ps(d, _mm512_loadu_ps(weight + i), _mm512_loadu_ps(bias + i)));
    }
}

/* ---- keys and values ----
   Keys of a head lie in blocks of 16 places with the places side by side, so that one instruction scores 16 of them;
   values lie place by place. In bfloat16 pairs stand together: of numbers of a key, and of places of a value. */

FN(void keep)(const Model *m, int layer, int slot, int place, int column, __m512 y) {
    const int C = m->n_embd, D = m->head_dim, is_key = column < 2 * C;
    column -= is_key ? C : 2 * C;
    const int head = column / D, d = column % D;
    const size_t size = m->cache_width == FLOAT32 ? 4 : 2;
    const size_t block = (((size_t)layer * m->slots + slot) * m->n_head + head) * m->capacity * D * size;
    float numbers[16];
    _mm512_storeu_ps(numbers, y);
    uint16_t shorts[16];
    _mm256_storeu_si256((__m256i *)shorts, NAME(narrow)(y));
    if (size == 4) {
        if (is_key) {
            float *keys = (float *)(m->keys + block) + (size_t)(place / 16) * D * 16 + place % 16;
            for (int i = 0; i < 16; i++) keys[(d + i) * 16] = numbers[i];
        } else {
            _mm512_storeu_ps((float *)(m->values + block) + (size_t)place * D + d, y);
        }
    } else if (is_key) {
        uint16_t *keys = (uint16_t *)(m->keys + block) + (size_t)(place / 16) * D * 16 + place % 16 * 2;
        for (int i = 0; i < 16; i++) keys[(d + i) / 2 * 32 + (d + i) % 2] = shorts[i];
    } else {
        uint16_t *values = (uint16_t *)(m->values + block) + (size_t)(place / 2) * D * 2 + d * 2;
        if (place % 2) for (int i = 0; i < 16; i++) values[2 * i + 1] = shorts[i];
        else _mm512_storeu_si512(values, _mm512_cvtepu16_epi32(_mm256_loadu_si256((__m256i *)shorts))); /* its pair is 0 yet */
    }
}

/* Attention of up to QUERIES tokens of one slot for one head; each sees the places up to its own. */
INLINE void NAME(attend)(const Step *s, int layer, int first, const int count, int head, float *scores) {
    const Model *m = s->model;
    const int D = m->head_dim, C = m->n_embd, slot = s->slots[first], narrow = m->cache_width != FLOAT32;
    const size_t size = narrow ? 2 : 4;
    const size_t block = (((size_t)layer * m->slots + slot) * m->n_head + head) * m->capacity * D * size;
    const char *keys = m->keys + block, *values = m->values + block;
    const int last = s->places[first + count - 1], blocks = last / 16 + 1;
    const float *q[QUERIES];
    EACH(i, count) q[i] = s->q + (size_t)(first + i) * C + head * D;
    uint16_t short_q[QUERIES][256];
    if (narrow)
        EACH(i, count)
            for (int d = 0; d < D; d += 16) _mm256_storeu_si256((__m256i *)(short_q[i] + d), NAME(narrow)(_mm512_loadu_ps(q[i] + d)));
    /* Scores of 4 blocks of 16 keys for one query, of 2 for several. There is room behind the last block. */
    const __m512 scale = _mm512_set1_ps((float)m->layers[layer].attn_scale);
    const int wide = count == 1 ? 4 : 2;
    for (int b = 0; b < blocks; b += wide) {
        __m512 acc[QUERIES][4];
        EACH(i, count)
            EACH(j, wide) acc[i][j] = _mm512_setzero_ps();
        const char *key = keys + (size_t)b * D * 16 * size;
        if (narrow) {
            for (int d = 0; d < D / 2; d++) {
                __m512i k[4];
                EACH(j, wide) k[j] = _mm512_loadu_si512(key + ((size_t)j * D / 2 + d) * 64);
                EACH(j, wide) _mm_prefetch(key + ((size_t)(j + wide) * D / 2 + d) * 64, _MM_HINT_T0);
                EACH(i, count) {
                    const __m512i pair = _mm512_set1_epi32(((const int32_t *)short_q[i])[d]);
                    EACH(j, wide) acc[i][j] = NAME(dot2)(acc[i][j], k[j], pair);
                }
            }
        } else {
            for (int d = 0; d < D; d++) {
                __m512 k[4];
                EACH(j, wide) k[j] = _mm512_loadu_ps(key + ((size_t)j * D + d) * 64);
                EACH(j, wide) _mm_prefetch(key + ((size_t)(j + wide) * D + d) * 64, _MM_HINT_T0);
                EACH(i, count)
                    EACH(j, wide) acc[i][j] = _mm512_fmadd_ps(_mm512_set1_ps(q[i][d]), k[j], acc[i][j]);
            }
        }
        EACH(i, count)
            EACH(j, wide)
                if (b + j < blocks) _mm512_storeu_ps(scores + (size_t)i * m->capacity + (b + j) * 16, _mm512_mul_ps(acc[i][j], scale));
    }
    for (int i = 0; i < 32; i++) _mm_prefetch(values + 64 * i, _MM_HINT_T0);
    /* Softmax; in bfloat16 the weights take the place of the scores, two bytes each. */
    float inverse[QUERIES];
    EACH(i, count) {
        float *score = scores + (size_t)i * m->capacity;
        const int seen = s->places[first + i] + 1, tail = seen % 16;
        const __mmask16 kept = tail ? (__mmask16)((1 << tail) - 1) : (__mmask16)0xffff;
        const int end = (seen - 1) / 16 * 16;
        _mm512_storeu_ps(score + end, _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), kept, score + end));
        __m512 top = _mm512_set1_ps(-INFINITY);
        for (int t = 0; t <= end; t += 16) top = _mm512_max_ps(top, _mm512_loadu_ps(score + t));
        const __m512 highest = _mm512_set1_ps(_mm512_reduce_max_ps(top));
        __m512 sum = _mm512_setzero_ps();
        for (int t = 0; t <= end; t += 16) {
            __m512 p = NAME(exp)(_mm512_sub_ps(_mm512_loadu_ps(score + t), highest));
            if (t == end) p = _mm512_maskz_mov_ps(kept, p);
            sum = _mm512_add_ps(sum, p);
            if (narrow) _mm256_storeu_si256((__m256i *)((uint16_t *)score + t), NAME(narrow)(p));
            else _mm512_storeu_ps(score + t, p);
        }
        inverse[i] = 1.0f / _mm512_reduce_add_ps(sum);
        for (int t = end + 16; t < blocks * 16; t += 16) { /* places that only later queries of this tile see */
            if (narrow) _mm256_storeu_si256((__m256i *)((uint16_t *)score + t), _mm256_setzero_si256());
            else _mm512_storeu_ps(score + t, _mm512_setzero_ps());
        }
    }
    for (int d = 0; d < D; d += 64) {
        const int n = D - d < 64 ? (D - d) / 16 : 4;
        __m512 acc[QUERIES][4];
        EACH(i, count)
            EACH(j, 4) acc[i][j] = _mm512_setzero_ps();
        if (narrow) {
            for (int t = 0; t <= last / 2; t++) {
                __m512i v[4];
                const char *value = values + ((size_t)t * D + d) * 4;
                EACH(j, 4) v[j] = j < n ? _mm512_loadu_si512(value + 64 * j) : _mm512_setzero_si512();
                EACH(j, 4) _mm_prefetch(value + 2048 + 64 * j, _MM_HINT_T0);
                EACH(i, count) {
                    __m512i pair = _mm512_set1_epi32(((const int32_t *)(scores + (size_t)i * m->capacity))[t]);
                    EACH(j, 4) acc[i][j] = NAME(dot2)(acc[i][j], v[j], pair);
                }
            }
        } else {
            for (int t = 0; t <= last; t++) {
                __m512 v[4];
                const char *value = values + ((size_t)t * D + d) * 4;
                EACH(j, 4) v[j] = j < n ? _mm512_loadu_ps(value + 64 * j) : _mm512_setzero_ps();
                EACH(j, 4) _mm_prefetch(value + 2048 + 64 * j, _MM_HINT_T0);
                EACH(i, count) {
                    __m512 p = _mm512_set1_ps(scores[(size_t)i * m->capacity + t]);
                    EACH(j, 4) acc[i][j] = _mm512_fmadd_ps(p, v[j], acc[i][j]);
                }
            }
        }
        EACH(i, count)
            for (int j = 0; j < n; j++)
                _mm512_storeu_ps(s->mix + (size_t)(first + i) * C + head * D + d + 16 * j, _mm512_mul_ps(acc[i][j], _mm512_set1_ps(inverse[i])));
    }
}

FN(void attend_any)(const Step *s, int layer, int first, int count, int head, float *scores) {
    switch (count) {
        case 1: NAME(attend)(s, layer, first, 1, head, scores); break;
        case QUERIES: NAME(attend)(s, layer, first, QUERIES, head, scores); break;
        default:
            EACH(i, count) NAME(attend)(s, layer, first + i, 1, head, scores);
    }
}

/* ---- matrices ---- */

INLINE void NAME(put)(const Step *s, const Matrix *w, const Sink *sink, int row, int column, __m512 y) {
    if (w->bias) y = _mm512_add_ps(y, _mm512_loadu_ps(w->bias + column));
    switch (sink->kind) {
        case STORE: {
            const int room = w->n_out - column;
            if (room > 0) _mm512_mask_storeu_ps(sink->out + (size_t)row * sink->width + column, room < 16 ? (__mmask16)((1 << room) - 1) : (__mmask16)0xffff, y);
            break;
        }
        case ACTIVATE:
            _mm512_storeu_ps(sink->out + (size_t)row * sink->width + column, NAME(activate)(y, s->model->activation));
            break;
        case ADD: {
            float *x = sink->out + (size_t)row * sink->width + column;
            _mm512_storeu_ps(x, _mm512_add_ps(_mm512_loadu_ps(x), y));
            break;
        }
        case QKV:
            if (column < s->model->n_embd) _mm512_storeu_ps(s->q + (size_t)row * s->model->n_embd + column, y);
            else NAME(keep)(s->model, sink->layer, s->slots[row], s->places[row], column, y);
    }
}

/* R rows from `row` on, all of one tile, times V x 16 outputs from `column` on. R and V are constants wherever these are
   called, so that every sum has a register. */
#define TILE_OF(name)                                                                                                      \
    INLINE void NAME(name)(const Step *s, const Matrix *w, const Rows *rows, const int R, const int V, int row, int column, \
                           const Sink *sink)

INLINE const int32_t *NAME(tile_data)(const Rows *rows, int row) {
    return (const int32_t *)(rows->data + (size_t)(row / rows->by) * rows->by * rows->row_size) + row % rows->by;
}

TILE_OF(tile_float32) {
    __m512 acc[TILE][16];
    EACH(r, R)
        EACH(v, V) acc[r][v] = _mm512_setzero_ps();
    const float *x = (const float *)NAME(tile_data)(rows, row), *weight = (const float *)w->weight + column;
    const size_t n_out = w->n_out, by = rows->by;
    for (int k = 0; k < w->n_in; k++, weight += n_out, x += by)
        EACH(v, V) {
            const __m512 b = _mm512_loadu_ps(weight + 16 * v);
            EACH(r, R) acc[r][v] = _mm512_fmadd_ps(_mm512_set1_ps(x[r]), b, acc[r][v]);
        }
    EACH(r, R)
        EACH(v, V) NAME(put)(s, w, sink, row + r, column + 16 * v, acc[r][v]);
}

TILE_OF(tile_bfloat16) {
    __m512 acc[TILE][4];
    EACH(r, R)
        EACH(v, V) acc[r][v] = _mm512_setzero_ps();
    const int32_t *x = NAME(tile_data)(rows, row);
    const char *weight = (const char *)w->weight + (size_t)(column / PANEL) * w->n_in * PANEL * 2 + column % PANEL * 4;
    const size_t by = rows->by;
    for (int k = 0; k < w->n_in / 2; k++, weight += PANEL * 4, x += by) {
        __m512i b[4];
        EACH(v, V) b[v] = _mm512_loadu_si512(weight + 64 * v);
        EACH(v, V) _mm_prefetch(weight + AHEAD + 64 * v, _MM_HINT_T0);
        EACH(r, R) {
            const __m512i pair = _mm512_set1_epi32(x[r]);
            EACH(v, V) acc[r][v] = NAME(dot2)(acc[r][v], b[v], pair);
        }
    }
    EACH(r, R)
        EACH(v, V) NAME(put)(s, w, sink, row + r, column + 16 * v, acc[r][v]);
}

TILE_OF(tile_int8) {
    __m512 acc[TILE][4];
    EACH(r, R)
        EACH(v, V) acc[r][v] = _mm512_setzero_ps();
    const int32_t *x = NAME(tile_data)(rows, row), *sums = rows->sums + (size_t)row * rows->most_groups;
    const float *scales = rows->scales + (size_t)row * rows->most_groups;
    const size_t by = rows->by, next = rows->most_groups;
    const char *weight = (const char *)w->weight + (size_t)(column / PANEL) * w->n_in * PANEL + column % PANEL * 4;
    for (int g = 0; g < w->n_in / 64; g++) {
        __m512i dot[TILE][4];
        EACH(r, R)
            EACH(v, V) dot[r][v] = _mm512_set1_epi32(sums[r * next + g]);
        for (int k = 0; k < 16; k++, weight += PANEL * 4, x += by) {
            __m512i b[4];
            EACH(v, V) b[v] = _mm512_loadu_si512(weight + 64 * v);
            EACH(v, V) _mm_prefetch(weight + AHEAD + 64 * v, _MM_HINT_T0);
            EACH(r, R) {
                const __m512i four = _mm512_set1_epi32(x[r]);
                EACH(v, V) dot[r][v] = _mm512_dpbusd_epi32(dot[r][v], b[v], four);
            }
        }
        EACH(r, R) {
            const __m512 scale = _mm512_set1_ps(scales[r * next + g]);
            EACH(v, V) acc[r][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][v]), scale, acc[r][v]);
        }
    }
    EACH(r, R)
        EACH(v, V)
            NAME(put)(s, w, sink, row + r, column + 16 * v, _mm512_mul_ps(acc[r][v], _mm512_loadu_ps((const float *)w->scale + column + 16 * v)));
}

TILE_OF(tile_int4) {
    __m512 acc[TILE][4];
    EACH(r, R)
        EACH(v, V) acc[r][v] = _mm512_setzero_ps();
    const __m512i nibble = _mm512_set1_epi8(15);
    const int panel = column / PANEL, within = column % PANEL;
    const int32_t *x = NAME(tile_data)(rows, row), *sums = rows->sums + (size_t)row * rows->most_groups;
    const float *scales = rows->scales + (size_t)row * rows->most_groups;
    const size_t by = rows->by, next = rows->most_groups;
    const char *weight = (const char *)w->weight + (size_t)panel * w->n_in * PANEL / 2 + within * 16;
    const uint16_t *scale = (const uint16_t *)w->scale + (size_t)panel * (w->n_in / GROUP) * PANEL + within;
    for (int g = 0; g < w->n_in / GROUP; g++, weight += PANEL * GROUP / 2, scale += PANEL) {
        __m512i dot[TILE][4];
        EACH(r, R)
            EACH(v, V) dot[r][v] = _mm512_set1_epi32(sums[r * next + g]);
        EACH(octet, 4) {
            EACH(v, V) {
                const __m512i both = _mm512_loadu_si512(weight + v * 256 + octet * 64);
                _mm_prefetch(weight + AHEAD + v * 256 + octet * 64, _MM_HINT_T0);
                const __m512i first = _mm512_and_si512(both, nibble);
                const __m512i second = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
                EACH(r, R) dot[r][v] = _mm512_dpbusd_epi32(dot[r][v], first, _mm512_set1_epi32(x[r]));
                EACH(r, R) dot[r][v] = _mm512_dpbusd_epi32(dot[r][v], second, _mm512_set1_epi32(x[by + r]));
            }
            x += 2 * by;
        }
        EACH(v, V) {
            const __m512 factor = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(scale + 16 * v)));
            EACH(r, R) {
                const __m512 both = _mm512_mul_ps(factor, _mm512_set1_ps(scales[r * next + g]));
                acc[r][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][v]), both, acc[r][v]);
            }
        }
    }
    EACH(r, R)
        EACH(v, V) NAME(put)(s, w, sink, row + r, column + 16 * v, acc[r][v]);
}

/* The float32 head is stored output by output, so each output is one dot product over 16 lanes; here V counts outputs,
   and rows are not interleaved. */
TILE_OF(tile_head) {
    __m512 acc[TILE][4];
    (void)s;
    EACH(r, R)
        EACH(v, V) acc[r][v] = _mm512_setzero_ps();
    const float *weight = (const float *)w->weight + (size_t)column * w->n_in;
    const float *x = (const float *)(rows->data + row * rows->row_size);
    for (int k = 0; k < w->n_in; k += 16)
        EACH(v, V) {
            const __m512 b = _mm512_loadu_ps(weight + (size_t)v * w->n_in + k);
            EACH(r, R) acc[r][v] = _mm512_fmadd_ps(_mm512_loadu_ps(x + r * (rows->row_size / 4) + k), b, acc[r][v]);
        }
    EACH(r, R)
        EACH(v, V) sink->out[(size_t)(row + r) * sink->width + column + v] = _mm512_reduce_add_ps(acc[r][v]);
}

/* A piece of a matrix: `outputs` units of 16 (of 1 in the float32 head), for all rows, in tiles of `tall` rows and what is
   left. Where many rows share the registers, `many` outputs are computed at a time, for all rows one after another, so
   that their weights stay in the first cache. Functions, and not inlined, so that each gets its own registers. */
#define PIECE(name, tile, unit, outputs, many, tall)                                                                       \
    FN(void name)(const Step *s, const Matrix *w, const Rows *rows, int n_rows, int column, const Sink *sink) {            \
        if (n_rows == 1) {                                                                                                 \
            NAME(tile)(s, w, rows, 1, outputs, 0, column, sink);                                                           \
            return;                                                                                                        \
        }                                                                                                                  \
        for (const int end = column + outputs * unit; column < end; column += many * unit) {                               \
            int row = 0;                                                                                                   \
            for (; row + tall <= n_rows; row += tall) NAME(tile)(s, w, rows, tall, many, row, column, sink);               \
            switch (n_rows - row) {                                                                                        \
                case 5: if (tall > 5) NAME(tile)(s, w, rows, 5, many, row, column, sink); break;                           \
                case 4: if (tall > 4) NAME(tile)(s, w, rows, 4, many, row, column, sink); break;                           \
                case 3: if (tall > 3) NAME(tile)(s, w, rows, 3, many, row, column, sink); break;                           \
                case 2: NAME(tile)(s, w, rows, 2, many, row, column, sink); break;                                         \
                case 1: NAME(tile)(s, w, rows, 1, many, row, column, sink);                                                \
            }                                                                                                              \
        }                                                                                                                  \
    }

PIECE(piece_float32, tile_float32, 16, 4, 4, TILE)
PIECE(piece_bfloat16, tile_bfloat16, 16, 4, 4, TILE)
PIECE(piece_int8, tile_int8, 16, 4, 2, 3)
PIECE(piece_int4, tile_int4, 16, 4, 4, 3)
PIECE(piece_head, tile_head, 1, 4, 4, TILE)
PIECE(piece_head_end, tile_head, 1, 1, 1, TILE)

/* One row of float32. Rows of the matrix lie far apart, so long stretches of DEPTH of them are read at a time, and the sums
   stay in the first cache; the threads' stretches together are the matrix from beginning to end. */
FN(void piece_float32_wide)(const Step *s, const Matrix *w, const Rows *rows, int column, int width, const Sink *sink) {
    enum { DEPTH = 4 };
    float sums[STRETCH];
    memset(sums, 0, 4 * width);
    const float *x = (const float *)rows->data, *weight = (const float *)w->weight + column;
    const size_t n_out = w->n_out;
    for (int k = 0; k < w->n_in; k += DEPTH, weight += DEPTH * n_out) {
        __m512 by[DEPTH];
        EACH(j, DEPTH) by[j] = _mm512_set1_ps(x[k + j]);
        for (int c = 0; c < width; c += 16) {
            __m512 sum = _mm512_loadu_ps(sums + c);
            EACH(j, DEPTH) sum = _mm512_fmadd_ps(by[j], _mm512_loadu_ps(weight + j * n_out + c), sum);
            _mm512_storeu_ps(sums + c, sum);
        }
    }
    for (int c = 0; c < width; c += 16) NAME(put)(s, w, sink, 0, column + c, _mm512_loadu_ps(sums + c));
}

FN(void multiply)(const Step *s, Team *team, int phase, const Matrix *w, int width, int is_head, const Rows *rows, int n_rows, const Sink *sink) {
    if (width == FLOAT32 && n_rows == 1 && !is_head) {
        int width = (w->n_out / (2 * team->threads) + PANEL - 1) / PANEL * PANEL;
        width = width > STRETCH ? STRETCH : width < PANEL ? PANEL : width;
        for (int column; (column = next_piece(team, phase) * width) < w->n_out;)
            NAME(piece_float32_wide)(s, w, rows, column, w->n_out - column < width ? w->n_out - column : width, sink);
        return;
    }
    for (int piece; (piece = next_piece(team, phase)) < (w->n_out + PANEL - 1) / PANEL;) {
        int column = piece * PANEL;
        if (width == FLOAT32 && is_head) {
            const int end = w->n_out - column < PANEL ? w->n_out : column + PANEL;
            for (; column + 4 <= end; column += 4) NAME(piece_head)(s, w, rows, n_rows, column, sink);
            for (; column < end; column++) NAME(piece_head_end)(s, w, rows, n_rows, column, sink);
        } else if (width == FLOAT32) NAME(piece_float32)(s, w, rows, n_rows, column, sink);
        else if (width == BFLOAT16) NAME(piece_bfloat16)(s, w, rows, n_rows, column, sink);
        else if (width == INT8) NAME(piece_int8)(s, w, rows, n_rows, column, sink);
        else NAME(piece_int4)(s, w, rows, n_rows, column, sink);
    }
}

/* ---- the step ---- */

/* Row `id` of the embedding, from wherever the head keeps it. */
FN(void embed)(const Model *m, int id, float *out) {
    const int C = m->n_embd;
    const Matrix *w = &m->head;
    if (m->head_width == FLOAT32) {
        memcpy(out, (const float *)w->weight + (size_t)id * C, (size_t)4 * C);
    } else if (m->head_width == BFLOAT16) {
        const uint16_t *weight = (const uint16_t *)w->weight + (size_t)(id / PANEL) * C * PANEL + id % PANEL * 2;
        for (int k = 0; k < C; k++) {
            uint32_t bits = (uint32_t)weight[k / 2 * PANEL * 2 + k % 2] << 16;
            memcpy(out + k, &bits, 4);
        }
    } else {
        const uint8_t *weight = (const uint8_t *)w->weight + (size_t)(id / PANEL) * C * PANEL + id % PANEL * 4;
        const float scale = ((const float *)w->scale)[id];
        for (int k = 0; k < C; k++) out[k] = (weight[k / 4 * PANEL * 4 + k % 4] - 128) * scale;
    }
}

/* Prepares n rows for the next matrix, after a norm if there is one. Few rows are prepared by every thread for itself,
   which saves a meeting. */
FN(Rows prepare_all)(const Step *s, Team *team, int phase, int thread, int n, const float *from, const int32_t *which,
                     int n_in, const float *weight, const float *bias, int width, int is_head) {
    const int own = n <= 2, first = own ? thread * 2 : 0;
    const Rows rows = {s->rows + first * s->row_size, s->scales + (size_t)first * s->most_groups,
                       s->sums + (size_t)first * s->most_groups, s->row_size, s->most_groups, width == FLOAT32 && is_head ? 1 : n <= 2 ? n : TILE};
    for (int i = own ? 0 : next_piece(team, phase); i < n; i = own ? i + 1 : next_piece(team, phase)) {
        const float *x = from + (size_t)(which ? which[i] : i) * n_in;
        if (weight) {
            float normed[n_in];
            NAME(norm)(x, n_in, weight, bias, (float)s->model->epsilon, normed);
            NAME(prepare)(normed, n_in, width, &rows, i);
        } else {
            NAME(prepare)(x, n_in, width, &rows, i);
        }
    }
    if (!own) meet(team);
    return rows;
}

FN(void run)(void *job, Team *team, int thread) {
    const Step *s = job;
    const Model *m = s->model;
    const int C = m->n_embd, F = m->n_inner, N = s->tokens, width = m->width;
    int phase = 0;
    Rows rows;
    for (int i; (i = next_piece(team, phase)) < N;) {
        float *x = s->x + (size_t)i * C;
        const float *position = m->positions + (size_t)s->places[i] * C;
        NAME(embed)(m, s->ids[i], x);
        for (int k = 0; k < C; k++) x[k] += position[k];
    }
    phase++;
    meet(team);
    for (int l = 0; l < m->n_layer; l++) {
        const Layer *layer = &m->layers[l];
        rows = NAME(prepare_all)(s, team, phase++, thread, N, s->x, NULL, C, layer->norm1_weight, layer->norm1_bias, width, 0);
        NAME(multiply)(s, team, phase++, &layer->attn, width, 0, &rows, N, &(Sink){QKV, NULL, 0, l});
        meet(team);
        for (int piece; (piece = next_piece(team, phase)) < s->n_tiles * m->n_head;) {
            const int32_t *tile = s->tiles[piece / m->n_head];
            NAME(attend_any)(s, l, tile[0], tile[1], piece % m->n_head, s->scores + (size_t)thread * QUERIES * m->capacity);
        }
        phase++;
        meet(team);
        rows = NAME(prepare_all)(s, team, phase++, thread, N, s->mix, NULL, C, NULL, NULL, width, 0);
        NAME(multiply)(s, team, phase++, &layer->attn_proj, width, 0, &rows, N, &(Sink){ADD, s->x, C, l});
        meet(team);
        rows = NAME(prepare_all)(s, team, phase++, thread, N, s->x, NULL, C, layer->norm2_weight, layer->norm2_bias, width, 0);
        NAME(multiply)(s, team, phase++, &layer->fc, width, 0, &rows, N, &(Sink){ACTIVATE, s->inner, F, l});
        meet(team);
        rows = NAME(prepare_all)(s, team, phase++, thread, N, s->inner, NULL, F, NULL, NULL, width, 0);
        NAME(multiply)(s, team, phase++, &layer->mlp_proj, width, 0, &rows, N, &(Sink){ADD, s->x, C, l});
        meet(team);
    }
    rows = NAME(prepare_all)(s, team, phase++, thread, s->wanted, s->x, s->wants, C, m->norm_weight, m->norm_bias, m->head_width, 1);
    NAME(multiply)(s, team, phase++, &m->head, m->head_width, 1, &rows, s->wanted, &(Sink){STORE, s->logits, m->vocab, 0});
}

#undef FN
#undef INLINE
#undef EACH
#undef TILE_OF
#undef PIECE
#endif
