-- purge: takes our tombstones out of a list where that is cheap.
--
-- KEYS[1]  the list
-- ARGV[1]  the tombstone
-- ARGV[2]  up to this length of the list, all of them
-- ARGV[3]  of a longer list, those so far from the tail, where workers pop
--
-- Returns {removed, left}: left is 0 if there are none any more, else 1 (there
-- may be some).
--
-- LREM is told how many LPOS has found, so that it walks no farther.
if redis.call('TYPE', KEYS[1]).ok ~= 'list' then
  return { 0, 0 }
end
if redis.call('LLEN', KEYS[1]) <= tonumber(ARGV[2]) then
  return { redis.call('LREM', KEYS[1], 0, ARGV[1]), 0 }
end
local n = #redis.call('LPOS', KEYS[1], ARGV[1], 'RANK', -1, 'COUNT', 0, 'MAXLEN', ARGV[3])
if n > 0 then
  redis.call('LREM', KEYS[1], -n, ARGV[1])
end
return { n, 1 }
