-- raise: makes a claimed epoch known to a database in which it was not claimed.
--
-- KEYS[1]  the control hash      ARGV[1]  the epoch
--
-- Returns the epoch that is now the newest, as text: a higher one stays. Decimal
-- texts are compared as in claim.lua.
local epoch = redis.call('HGET', KEYS[1], 'epoch') or '0'
if #epoch < #ARGV[1] or #epoch == #ARGV[1] and epoch < ARGV[1] then
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
  return ARGV[1]
end
return epoch
