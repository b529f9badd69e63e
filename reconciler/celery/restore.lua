-- restore: puts the removed artifacts of one subject back, and holds it.
--
-- KEYS[1]  the subject's record
-- ARGV[1]  how long it is not to be removed again, ms
-- ARGV[2]  '1': hold it in any case, since its messages were restored
--
-- Returns {hold_until, revoked_at, key, status, key, status, …}; {} without a record.
--   hold_until, revoked_at  ms, 0 for none
--   status      'restored'; 'exists' (a newer value is there and stays; the old
--               one is kept until the quarantine ends); 'expired' (the original
--               would have expired by now); 'gone' (the quarantine has ended)
-- A second call finds nothing to restore, and changes nothing.
local record = redis.call('HGETALL', KEYS[1])
if #record == 0 then
  return {}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held, hold = 0, ARGV[2] == '1'
local out = { 0, 0 }

for i = 1, #record, 2 do
  local field, value = record[i], record[i + 1]
  if field == 'hold_until' then
    held = tonumber(value)
  elseif field == 'revoked_at' then
    out[2] = tonumber(value)
  elseif string.sub(field, 1, 1) == '@' then
    local key, expires = string.sub(field, 2), tonumber(value)
    local undo = 'orphanwatch:undo:' .. key
    local status
    if expires >= 0 and expires <= now then
      redis.call('UNLINK', undo)
      status = 'expired'
    elseif redis.call('EXISTS', undo) == 0 then
      status = 'gone'
    elseif redis.call('RENAMENX', undo, key) == 0 then
      status = 'exists'
    else
      status = 'restored'
      if expires < 0 then
        redis.call('PERSIST', key)
      else
        redis.call('PEXPIREAT', key, expires)
      end
    end
    if status ~= 'exists' then
      redis.call('HDEL', KEYS[1], field)
    end
    hold = hold or status == 'restored' or status == 'exists'
    out[#out + 1], out[#out + 2] = key, status
  end
end

if hold and held <= now then
  held = now + tonumber(ARGV[1])
  redis.call('HSET', KEYS[1], 'hold_until', held, 'restored_at', now)
  if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
  end
end
if held > now then
  out[1] = held
end
return out
