-- drain_unacked: takes unacked messages out, and keeps them.
--
-- KEYS[1] to KEYS[5], ARGV[1] to ARGV[9]  see quarantine.lua
-- KEYS[6]  the sorted set beside the hash of unacked messages
-- ARGV[10], ARGV[11], …  pairs of a delivery tag and its field's whole value
--
-- Returns {status, taken}: status 'stale' or 'paused' (nothing was touched), else
-- 'drained'. What is not there any more, or has another value, is left.
local status = refusal()
if status then
  return { status, 0 }
end
local place = KEYS[2]
if call('TYPE', place).ok ~= 'hash' then
  return { 'drained', 0 }
end
local tags, values = {}, {}
for i = 10, #ARGV, 2 do
  -- A tag may stand twice: HSCAN says so.
  if call('HGET', place, ARGV[i]) == ARGV[i + 1] and not tags[ARGV[i]] then
    tags[ARGV[i]] = true
    values[#values + 1] = ARGV[i + 1]
  end
end
keep(values)
local indexed = call('TYPE', KEYS[6]).ok == 'zset'
for tag in pairs(tags) do
  -- Never one without the other: an entry of the hash alone is never given back.
  call('HDEL', place, tag)
  if indexed then
    call('ZREM', KEYS[6], tag)
  end
end
return { 'drained', #values }
