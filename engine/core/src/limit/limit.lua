-- One exchange between an instance and the bucket of one key. The same arithmetic is in script.rs, where it is explained.
-- KEYS[1]: the bucket, "microseconds:units", the time at which it is full again; absent when it is full.
local stored = redis.call('GET', KEYS[1])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local P, L, B, divisor = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local debt, must, extra, held = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local back, hint, max_wait = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min

local full = B * P
local d = 0
if stored then
  local s, f = string.match(stored, '^(%d+):(%d+)$')
  if s then d = max((s - now) * L + f, 0) end
end
if d > 3 * full then d = full end
d = max(d, min(hint * L, full))
d = max(0, d - back * P) + debt * P
local level = floor((full - d) / P)
local g = min(must, max(level, 0))
d = d + g * P
level = level - g
local late = max(0, min(floor((full + max_wait * L - d) / P), must - g))
local d0 = max(0, ceil((d + P - full) / L))
d = d + late * P
level = level - late
local e = 0
if divisor > 0 then e = max(0, min(extra, floor(max(level, 0) / divisor) - held)) end
d = d + e * P
level = level - e
local retry = 0
if level < 1 then retry = max(0, ceil((d + P - full) / L)) end
if d > 0 then
  local ahead = floor(d / L)
  redis.call('SET', KEYS[1], string.format('%.0f:%.0f', now + ahead, d - ahead * L),
    'PX', string.format('%.0f', ceil(d / L / 1000) + 1))
else
  redis.call('DEL', KEYS[1])
end
return { g, late, d0, e, level, retry, ceil(d / L) }
