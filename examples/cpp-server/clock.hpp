// The clock for everything that takes time.
#pragma once

#include <chrono>

using Clock = std::chrono::steady_clock;

/// Interval between checks whether the client is still connected.
constexpr std::chrono::milliseconds look_around(50);

inline double ms_since(Clock::time_point start, Clock::time_point end = Clock::now())
{
    return std::chrono::duration<double, std::milli>(end - start).count();
}
