-- One call for one key of a rate limit. GCRA in units of 1/L microsecond: a token costs P units, a bucket of B tokens is full
-- after B * P. The key holds the time at which the bucket will be full again, as "microseconds:units". All numbers are
-- whole and below 2^53, so doubles are exact.
local P, L, B = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local divisor, debt, must = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local extra, held, back = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local hint, max_wait = tonumber(ARGV[10]), tonumber(ARGV[11])
local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local full = B * P

-- How far the bucket is from full.
local d = 0
local stored = redis.call('GET', KEYS[1])
if stored then
    local s, f = string.match(stored, '^(%d+):(%d+)$')
    if s then d = max(0, (s - now) * L + f) end
end
-- The clock went back.
if d > 3 * full then d = full end
-- Redis forgot, or its clock leapt ahead: the caller knows better.
d = max(d, min(hint * L, full))
d = max(0, d - back * P) + debt * P

local level = floor((full - d) / P)
-- Held requests that go now.
local g = min(must, max(level, 0))
d = d + g * P
level = level - g
-- Those that need wait only a moment, and how long the first of them waits.
local late = max(0, min(floor((full + max_wait * L - d) / P), must - g))
local d0 = max(0, ceil((d + P - full) / L))
d = d + late * P
level = level - late
-- The lease.
local e = 0
if divisor > 0 then e = max(0, min(extra, floor(max(level, 0) / divisor) - held)) end
d = d + e * P
level = level - e
local retry = 0
if level < 1 then retry = max(0, ceil((d + P - full) / L)) end

if d > 0 then
    redis.call('SET', KEYS[1], string.format('%.0f:%.0f', now + floor(d / L), d % L),
        'PX', string.format('%.0f', ceil(d / L / 1000) + 1))
else
    redis.call('DEL', KEYS[1])
end
return { g, late, d0, e, level, retry, ceil(d / L) }
