-- remove: takes the unchanged artifacts of one subject out of their places, and
-- remembers them. One subject a call.
--
-- KEYS[1]  the control hash
-- KEYS[2]  the subject's record      KEYS[3]  the sorted set of records
-- KEYS[4…] the artifacts
-- ARGV[1]  the caller's epoch
-- ARGV[2]  quarantine, ms; 0: the value is not kept
-- ARGV[3]  how long the record lasts, ms; 0: none is written
-- ARGV[4]  the record's id, its member in KEYS[3]
-- ARGV[5]  the evidence
-- ARGV[6]  n, how many arguments of the record's first fields follow
-- ARGV[7…6+n]  field, value, …
-- then of each artifact: kind, and its stamp (stamp.lua): length, head, tail
--
-- Returns {status, r1, r2, …}: 'stale' (another leader, or no control hash),
-- 'paused', 'held' (restored by an operator): nothing was touched. Else 'removed',
-- or 'changed' if any artifact has another stamp now, and for each artifact
-- 1 removed, 0 not there, -1 changed and left.
--
-- The removed value is renamed to orphanwatch:undo:<key>, which costs the same at
-- any size, until quarantine ends or it would have expired by itself. The first
-- value wins: while there is an undo key, later values are unlinked.
--
-- The record is a hash. Written once: evidence (which later becomes 'deleted' if
-- a later removal was on that), removed_at (ms) and the fields of ARGV. Updated:
-- again_at (ms), results, companions (how many), and for each undo key a field
-- '@' .. key: when the original would have expired (ms, -1 never).
-- It is written before the removal, so that a full memory stops both.
local control = redis.call('HMGET', KEYS[1], 'epoch', 'paused')
if control[1] ~= ARGV[1] then
  return { 'stale' }
end
if control[2] then
  return { 'paused' }
end
local record = redis.call('HMGET', KEYS[2], 'evidence', 'hold_until')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if record[2] and tonumber(record[2]) > now then
  return { 'held' }
end

local quarantine, remember = tonumber(ARGV[2]), tonumber(ARGV[3])
local nfields = tonumber(ARGV[6])
local fields, counts, found = {}, {}, {}
local status = 'removed'
local out = { status }
local arg = 7 + nfields

for i = 4, #KEYS do
  local key = KEYS[i]
  local len, head, tail = stamp(key)
  if not len then
    out[#out + 1] = 0
  elseif len ~= tonumber(ARGV[arg + 1]) or head ~= ARGV[arg + 2] or tail ~= ARGV[arg + 3] then
    out[#out + 1] = -1
    out[1] = 'changed'
  else
    out[#out + 1] = 1
    found[#found + 1] = key
    counts[ARGV[arg]] = (counts[ARGV[arg]] or 0) + 1
    if quarantine > 0 and not (record[1] and redis.call('EXISTS', 'orphanwatch:undo:' .. key) == 1) then
      local ttl = redis.call('PTTL', key)
      fields[#fields + 1] = '@' .. key
      fields[#fields + 1] = ttl < 0 and -1 or now + ttl
    end
  end
  arg = arg + 4
end
if #found == 0 then
  return out
end

if remember > 0 then
  if not record[1] then
    for i = 7, 6 + nfields do
      fields[#fields + 1] = ARGV[i]
    end
    fields[#fields + 1], fields[#fields + 2] = 'evidence', ARGV[5]
    fields[#fields + 1], fields[#fields + 2] = 'removed_at', now
    for kind, n in pairs(counts) do
      fields[#fields + 1], fields[#fields + 2] = kind, n
    end
  else
    fields[#fields + 1], fields[#fields + 2] = 'again_at', now
    if ARGV[5] == 'deleted' then
      fields[#fields + 1], fields[#fields + 2] = 'evidence', 'deleted'
    end
    for kind, n in pairs(counts) do
      redis.call('HINCRBY', KEYS[2], kind, n)
    end
  end
  redis.call('HSET', KEYS[2], unpack(fields))
  redis.call('PEXPIRE', KEYS[2], remember)
  redis.call('ZADD', KEYS[3], now, ARGV[4])
end

for _, key in ipairs(found) do
  if quarantine == 0 then
    redis.call('UNLINK', key)
  else
    local undo = 'orphanwatch:undo:' .. key
    if redis.call('RENAMENX', key, undo) == 0 then
      redis.call('UNLINK', key)
    else
      local ttl = redis.call('PTTL', undo)
      if ttl < 0 or ttl > quarantine then
        redis.call('PEXPIRE', undo, quarantine)
      end
    end
  end
end
return out
