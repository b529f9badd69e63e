-- trim: forgets the oldest entries of the set of records.
--
-- KEYS[1]  the sorted set      ARGV[1]  age from which to forget, ms
-- ARGV[2]  how many at most
--
-- Returns how many were forgotten.
local time = redis.call('TIME')
local before = time[1] * 1000 - tonumber(ARGV[1])
local old = #redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', before, 'LIMIT', 0, ARGV[2])
if old > 0 then
  redis.call('ZREMRANGEBYRANK', KEYS[1], 0, old - 1)
end
return old
