-- One service's instances in one hash: for each a field `i:NAME` with `UNTIL TTL BODY`, times in ms, without a body for ten
-- seconds after it has taken its leave; `store` and `version`, which change when all is lost and when something has changed;
-- `due`, before which nobody's time ends.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local key, what, field = KEYS[1], ARGV[1], 'i:' .. ARGV[2]
local store, version, due = unpack(redis.call('HMGET', key, 'store', 'version', 'due'))
local changed = false

local function whole(number) return string.format('%.0f', number) end
local function parts(value) return string.match(value or '', '^(%d+) (%d+) (.*)$') end

if due and tonumber(due) <= now then
    local all, soonest = redis.call('HGETALL', key), nil
    for at = 1, #all, 2 do
        if string.sub(all[at], 1, 2) == 'i:' then
            local ends = tonumber((parts(all[at + 1]))) or 0
            if ends <= now then
                redis.call('HDEL', key, all[at])
                changed = true
            elseif not soonest or ends < soonest then
                soonest = ends
            end
        end
    end
    due = soonest
    if due then redis.call('HSET', key, 'due', whole(due)) else redis.call('HDEL', key, 'due') end
end

local function put(ttl, body)
    redis.call('HSET', key, field, whole(now + ttl) .. ' ' .. whole(ttl) .. ' ' .. body)
    if not due or now + ttl < tonumber(due) then
        due = now + ttl
        redis.call('HSET', key, 'due', whole(due))
    end
    redis.call('PEXPIRE', key, 86400000)
end

local answer
if what ~= 'list' then
    local _, ttl, body = parts(redis.call('HGET', key, field))
    local is_full = not body and redis.call('HLEN', key) >= 1024 + 3
    local is_known = body and body ~= ''
    if what == 'register' then
        if is_full then
            answer = -1
        else
            put(tonumber(ARGV[3]), ARGV[4])
            answer = is_known and 0 or 1
            changed = changed or body ~= ARGV[4]
        end
    elseif what == 'beat' then
        if is_known then put(tonumber(ttl), body) end
        answer = is_known and 1 or 0
    elseif what == 'leave' then
        -- Of one that is not known too: a gateway may remember it.
        if not is_full and body ~= '' then
            put(10000, '')
            changed = true
        end
        answer = is_known and 1 or 0
    end
end

if changed then
    store = store or (time[1] .. '-' .. time[2])
    version = whole(math.max(now, tonumber(version or 0) + 1))
    redis.call('HSET', key, 'store', store, 'version', version)
end
if answer then return answer end

local seen = store and (store .. '.' .. version) or ''
-- The list itself is read in parts: no call is to take long.
if ARGV[2] == seen then return {seen} end
return {seen, whole(now)}
