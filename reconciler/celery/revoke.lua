-- revoke: publishes a message of remote control while the caller leads, and what it
-- read of the rows is good.
--
-- KEYS[1]  the control hash
-- ARGV[1]  the caller's epoch
-- ARGV[2]  until when its look at the rows is good, by this server's clock, ms; 0: for ever
-- ARGV[3]  the channel      ARGV[4]  the message
--
-- Returns how many heard it; -1 for another leader or no control hash, -2 where it
-- is late, -3 in a pause: nothing was published.
local control = redis.call('HMGET', KEYS[1], 'epoch', 'paused')
if control[1] ~= ARGV[1] then
  return -1
end
if control[2] then
  return -3
end
local good = tonumber(ARGV[2])
if good > 0 then
  local time = redis.call('TIME')
  if time[1] * 1000 + math.floor(time[2] / 1000) > good then
    return -2
  end
end
return redis.call('PUBLISH', ARGV[3], ARGV[4])
