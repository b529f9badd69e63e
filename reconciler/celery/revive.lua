-- revive: the row of a record exists (again). Its deletion is no evidence any
-- more, and an operator's hold has done its work.
--
-- KEYS[1]  the record
-- ARGV[1]  now, ms
--
-- Returns 1, or 0 where there is no record.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], 'revived_at', ARGV[1])
redis.call('HDEL', KEYS[1], 'hold_until')
return 1
