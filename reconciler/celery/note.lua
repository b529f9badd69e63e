-- note: sets or deletes a field of the control hash, while the caller leads: one that
-- was stopped and replaced takes no order, and overwrites nothing of its successor's.
--
-- KEYS[1]  the control hash
-- ARGV[1]  the caller's epoch
-- ARGV[2]  the field      ARGV[3]  its value, '' to delete it
--
-- Returns {1, the value before}, or {0} for another leader or no control hash.
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
  return { 0 }
end
local before = redis.call('HGET', KEYS[1], ARGV[2])
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], ARGV[2])
else
  redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
end
return { 1, before }
