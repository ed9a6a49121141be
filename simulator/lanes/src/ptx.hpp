// CPU models of the wrappers in include/ptx.cuh.
#pragma once

namespace cleave {

namespace model {
template <class T> float element(const unsigned char *words, int index)
{
    T value;
    std::memcpy(&value, words + sizeof(T) * index, sizeof(T));
    return to_float(value);
}

struct Fragments {
    uint32_t a[4], b[2];
};
} // namespace model

template <class T> inline void mma16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    model::Fragments mine;
    std::memcpy(mine.a, a, sizeof a);
    std::memcpy(mine.b, b, sizeof b);
    const sim::Given &given = sim::exchange("mma16816", 0xffffffffu, &mine, sizeof mine);
    const int g = sim::place.lane / 4, t = sim::place.lane % 4;
    for (int out = 0; out < 4; out++) {
        const int row = g + 8 * (out / 2), column = 2 * t + out % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) {
            const int pair = k % 8 / 2, half = k / 8;
            const unsigned char *of_a = given.at[row % 8 * 4 + pair], *of_b = given.at[column * 4 + pair];
            sum += model::element<T>(of_a, 2 * (row / 8 + 2 * half) + k % 2) *
                   model::element<T>(of_b + sizeof mine.a, 2 * half + k % 2);
        }
        d[out] += sum;
    }
}

namespace model {
inline void load_matrices(uint32_t (&out)[4], const void *row, bool transposed)
{
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
        sim::fail("ldmatrix: a row is not aligned to 16 bytes");
    const sim::Given &given = sim::exchange("ldmatrix", 0xffffffffu, &row, sizeof row);
    const int g = sim::place.lane / 4, t = sim::place.lane % 4;
    for (int matrix = 0; matrix < 4; matrix++) {
        uint16_t both[2];
        for (int i = 0; i < 2; i++) {
            const int r = transposed ? 2 * t + i : g, c = transposed ? g : 2 * t + i;
            const unsigned char *from;
            std::memcpy(&from, given.at[8 * matrix + r], sizeof from);
            std::memcpy(&both[i], from + 2 * c, 2);
        }
        std::memcpy(&out[matrix], both, 4);
    }
}
} // namespace model

inline void ldmatrix(uint32_t (&out)[4], const void *row) { model::load_matrices(out, row, false); }
inline void ldmatrix_trans(uint32_t (&out)[4], const void *row) { model::load_matrices(out, row, true); }

// The data arrives only at the wait, so a kernel that forgets to wait reads stale data.
inline void cp_async(void *shared, const void *global, bool valid)
{
    if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || (valid && reinterpret_cast<uintptr_t>(global) % 16 != 0))
        sim::fail("cp_async: an address is not aligned to 16 bytes");
    sim::copy_later(shared, global, 16, valid);
}
inline void cp_async_commit() { sim::commit_copies(); }
template <int N> inline void cp_async_wait() { sim::wait_for_copies(N); }

inline void load_once(uint32_t (&out)[4], const void *global, bool valid)
{
    if (valid && reinterpret_cast<uintptr_t>(global) % 16 != 0)
        sim::fail("load_once: the address is not aligned to 16 bytes");
    std::memset(out, 0, sizeof out);
    if (valid)
        std::memcpy(out, global, sizeof out);
}

inline float exp2_fast(float x) { return std::exp2(x); }

inline unsigned char *shared_memory() { return sim::dynamic_shared(); }

} // namespace cleave
